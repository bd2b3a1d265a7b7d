// The integer kernels, written once in the vectors of integer_simd.h. For each bundle of outputs
// and each block of k, the codes are unpacked into registers once and multiplied by all rows.
//
// Each file that includes this compiles it for its instruction set.
#pragma once

#include "cpu/integer_kernels.h"
#include "cpu/integer_simd.h"

namespace mixtral::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 32;  // whose sums stay in the L1 cache
// Bytes of the weight that are fetched before they are used; the most is a part of the L2 cache.
constexpr int64_t kLeastAhead = 16 << 10, kMostAhead = 128 << 10;
// Rows whose products take so long that the processor does not prefetch the next bundle in time.
constexpr int64_t kManyRows = 16;
constexpr int64_t kGranule = 32;  // bytes: four of each of a bundle's outputs

template <int index>
[[gnu::always_inline]] inline Ints byte_of(Ints a) {
  return both(shift_right<8 * index>(a), broadcast(0xff));
}
template <int index>
[[gnu::always_inline]] inline Ints signed_byte_of(Ints a) {
  return shift_right_signed<24>(shift_left<24 - 8 * index>(a));
}
[[gnu::always_inline]] inline Bytes low_codes(Bytes a) { return both(a, broadcast(0x0f0f0f0f)); }
[[gnu::always_inline]] inline Bytes high_codes(Bytes a) { return low_codes(shift_right<4>(a)); }

/// std::integral_constant's operator would be shared between instruction sets.
template <int n>
struct Count {
  static constexpr int value = n;
};

/// to[r] = Σ codes · x[r].codes over kCodes · 4 elements from `at` on, times `scales` where there
/// are any; no code is above kLargest. Rows take turns, and one row has two chains, so that
/// instructions seldom wait for the one before.
template <int kLargest, int kRows, class X, int kCodes, class... OneScales>
[[gnu::always_inline]] inline void dot(const Bytes (&codes)[kCodes], const X* x, int at,
                                       Ints (&to)[kRows], OneScales... scales) {
  constexpr int kStep = kChain(kLargest);
  constexpr int kChains = kRows == 1 && kStep >= kCodes && sizeof...(OneScales) == 0 ? 2 : 1;
  Sums sums[kRows][kChains];
#pragma GCC unroll 8
  for (int i = 0; i < kCodes; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Sums& sum = sums[r][i % kChains];
      if (i > 0 && i % kStep == 0) {
        const Ints part = finish(sum, scales...);
        to[r] = i == kStep ? part : add(to[r], part);
      }
      if (i % kStep < kChains) sum = begin_sums();
      sum = add_products(sum, codes[i], broadcast(load_word(x[r].codes + at + 4 * i)));
      if constexpr (kRows > 1) sum = in_order(sum);
    }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Ints part = finish(sums[r][0], scales...);
    if constexpr (kChains == 2) part = add(part, finish(sums[r][1], scales...));
    to[r] = kStep < kCodes ? add(to[r], part) : part;
  }
}

/// Calls body(Count<n>, first) for all rows, n of them at once: 4, 2 or 1. kRows: how many there
/// are, where that is known; else 0.
template <int kRows, class Body>
[[gnu::always_inline]] inline void for_rows(int64_t rows, Body body) {
  if constexpr (kRows == 1) {
    body(Count<1>(), 0);
    return;
  }
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) body(Count<4>(), r);
  if (r + 2 <= rows) {
    body(Count<2>(), r);
    r += 2;
  }
  if (r < rows) body(Count<1>(), r);
}

/// Fetches bundles that are read side by side into the L2 cache ahead of their use: short ones in
/// the order of memory, since the processor's own prefetching is slow to start on short streams.
/// Fetching into the L1 cache was measured to be slower.
class Ahead {
 public:
  explicit Ahead(const IntegerTask& t)
      : linear_(kBundles * t.bundle_bytes <= kMostAhead),
        end_(t.weight + t.bundles * t.bundle_bytes),
        next_(t.next) {
    const int64_t bytes = kBundles * t.bundle_bytes;
    at_ = t.weight + (kLeastAhead + bytes - 1) / bytes * bytes;
  }

  /// Begins with what lies ahead of a block at `w` with `bytes` of each bundle.
  [[gnu::always_inline]] void begin(Place w, int64_t bytes) {
    if (linear_) {
      if (at_ >= end_ && next_) {
        at_ = next_ + (at_ - end_);
        next_ = nullptr;
      }
      from_ = at_;
      at_ += kBundles * bytes;
      stop_ = at_;
      other_ = 0;
    } else {
      from_ = w.at + kLeastAhead;
      stop_ = from_ + bytes;
      other_ = kBundles == 2 ? w.next : 0;
    }
  }
  /// Fetches the rest of that, `bytes` of each stream at most. What lies ahead of large blocks of
  /// two bundles is fetched beside their arithmetic, a little at a time: the processor drops what
  /// is too much at once. (One bundle at a time was measured to be as fast or faster all at once.)
  [[gnu::always_inline]] void fetch(int64_t bytes) {
    const uint8_t* const stop = stop_ - from_ < bytes ? stop_ : from_ + bytes;
    for (; from_ < stop; from_ += 64) {
      prefetch(from_);
      if (kBundles == 2 && other_ != 0) prefetch(from_ + other_);
    }
  }
  /// Fetches `bytes` from `from` on.
  [[gnu::always_inline]] static void fetch(const uint8_t* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) prefetch(from + i);
  }

 private:
  [[gnu::always_inline]] static void prefetch(const uint8_t* from) {
    __builtin_prefetch(from, 0, 2);
  }

  bool linear_;
  const uint8_t *at_, *end_, *next_;
  const uint8_t *from_ = nullptr, *stop_ = nullptr;  // what is left of a block's
  int64_t other_ = 0;                                // bytes from there to the second stream
};

// Each format adds one block's products to the sums of `rows` rows. x[r] is row r's block.
// kInOrder: a block is read from front to back, more or less. kLarge: what lies ahead is fetched
// in eight parts.

/// Blocks of 32: a scale, of some a minimum, of some fifth bits, and codes of four bits.
template <int kBits, bool kMinimum>
struct Fours {
  using X = RoundedBlock;
  static constexpr bool kInOrder = true, kLarge = false;
  static constexpr int64_t kHeader = kMinimum ? 32 : 16;
  static constexpr int64_t kBytes = kHeader + (kBits == 5 ? kGranule : 0) + 4 * kGranule;

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead&) {
    Reals scale, minimum;
    if constexpr (kMinimum) {
      const Ints pair = load_ints(w);
      scale = low_halves(pair);
      minimum = high_halves(pair);
    } else {
      scale = load_halves(w);
    }
    const Place packed = w + (kBytes - 4 * kGranule);
    Bytes codes[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Bytes both_halves = load_ints(packed + i * kGranule);
      codes[i] = low_codes(both_halves);
      codes[4 + i] = high_codes(both_halves);
    }
    if constexpr (kBits == 5) {
      // Bit i of a word is element i's: four of them are spread over the bytes by a product.
      Ints bits = load_ints(w + kHeader);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const Ints spread = multiply(both(bits, broadcast(15)), broadcast(0x00204081));
        codes[i] = either(codes[i], shift_left<4>(both(spread, broadcast(0x01010101))));
        bits = shift_right<4>(bits);
      }
    }
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      Ints products[kTogether];
      dot<(1 << kBits) - 1>(codes, x + first, 0, products);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const X& row = x[first + i];
        Ints sum = products[i];
        if constexpr (!kMinimum) sum = subtract(sum, shift_left<kBits - 1>(broadcast(row.sum)));
        const Reals step = broadcast(row.scale);
        Reals to = multiply_add(to_reals(sum), multiply(scale, step), sums[first + i]);
        if constexpr (kMinimum)
          to = multiply_add(broadcast(static_cast<float>(row.sum)), multiply(minimum, step), to);
        sums[first + i] = to;
      }
    });
  }
};

/// to[r] = Σ codes · x[r].codes over 32 elements.
template <int kRows>
[[gnu::always_inline]] inline void dot_signed(const SignedBytes (&codes)[8], const RoundedBlock* x,
                                              Ints (&to)[kRows]) {
  constexpr int kChains = kRows == 1 ? 2 : 1;
  Ints products[kRows * kChains];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    products[r * kChains] = begin_signed(x[r].sum);
    if constexpr (kChains == 2) products[1] = zero_ints();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Ints& sum = products[r * kChains + i % kChains];
      sum = add_signed(sum, codes[i], broadcast(load_word(x[r].codes + 4 * i)));
      if constexpr (kRows > 1) sum = in_order(sum);
    }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    to[r] = kChains == 2 ? add(products[0], products[1]) : products[r];
}

/// Blocks of 32: a scale and codes of eight bits with a sign.
struct Eights {
  using X = RoundedBlock;
  static constexpr bool kInOrder = true, kLarge = false;
  static constexpr int64_t kBytes = 16 + 8 * kGranule;

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead&) {
    const Reals scale = load_halves(w);
    SignedBytes codes[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) codes[i] = make_signed(load_ints(w + (16 + i * kGranule)));
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      Ints products[kTogether];
      dot_signed(codes, x + first, products);
#pragma GCC unroll 4
      for (int r = 0; r < kTogether; ++r)
        sums[first + r] = multiply_add(
            to_reals(products[r]), multiply(scale, broadcast(x[first + r].scale)), sums[first + r]);
    });
  }
};

/// Groups of codes without a sign, of four bits or eight; their scales and minima stand apart, in
/// f16 or bf16. A byte of codes of four bits holds neighbours, and x has its even places first.
template <int kBits, bool kBf16>
struct Groups {
  using X = RoundedBlock;
  static constexpr bool kInOrder = true, kLarge = false;
  static constexpr int64_t kBytes = kBits * kGranule;  // of 32 elements

  [[gnu::always_inline]] static Reals load_numbers(Place p) {
    if constexpr (kBf16) return load_bf16(p);
    return load_halves(p);
  }

  template <int kRows>
  [[gnu::always_inline]] static void add_to_sums(const Ints (&products)[kRows], Reals scale,
                                                 Reals minimum, const X* x, Reals* sums) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Reals step = broadcast(x[r].scale);
      const Reals to = multiply_add(to_reals(products[r]), multiply(scale, step), sums[r]);
      sums[r] = multiply_add(broadcast(static_cast<float>(x[r].sum)), multiply(minimum, step), to);
    }
  }

  /// The products of 32 elements.
  template <int kRows>
  [[gnu::always_inline]] static void add_products_of(Place w, Reals scale, Reals minimum,
                                                     const X* x, int64_t rows, Reals* sums) {
    if constexpr (kBits == 4) {
      Bytes codes[8];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Bytes pairs = load_ints(w + i * kGranule);
        codes[i] = low_codes(pairs);
        codes[4 + i] = high_codes(pairs);
      }
      for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
        Ints products[decltype(together)::value];
        dot<15>(codes, x + first, 0, products);
        add_to_sums(products, scale, minimum, x + first, sums + first);
      });
    } else {
      SignedBytes codes[8];  // less 128
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) codes[i] = make_signed(flip_signs(load_ints(w + i * kGranule)));
      for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
        constexpr int kTogether = decltype(together)::value;
        Ints products[kTogether];
        dot_signed(codes, x + first, products);
#pragma GCC unroll 4
        for (int r = 0; r < kTogether; ++r)
          products[r] = add(products[r], broadcast(128 * x[first + r].sum));
        add_to_sums(products, scale, minimum, x + first, sums + first);
      });
    }
  }

  /// The products of group `group` of a bundle.
  template <int kRows>
  [[gnu::always_inline]] static void add_group(const IntegerTask& t, Place w, int64_t bundle,
                                               bool two, int64_t group, const X* x, int64_t rows,
                                               Reals* sums) {
    constexpr int64_t kNumbers = 16;  // bytes of a bundle's scales
    const int64_t at = bundle * t.scale_bytes + group * kNumbers, next = two ? t.scale_bytes : 0;
    const Reals scale = load_numbers({t.scales + at, next});
    const Reals minimum = load_numbers({t.minima + at, next});
    for (int64_t block = 0; block < t.group_blocks; ++block)
      add_products_of<kRows>(w + block * kBytes, scale, minimum, x + block * t.x_rows, rows, sums);
  }
};

template <class Format>
constexpr bool kInGroups = false;
template <int kBits, bool kBf16>
constexpr bool kInGroups<Groups<kBits, kBf16>> = true;

/// Super-blocks of 256: scales and minima of 6 bits for each 32 elements, fifth bits or none, and
/// codes of four bits: chunk c of 32 bytes holds elements 64 c to 64 c + 31 in its low halves and
/// the next 32 in its high ones.
template <int kBits>
struct SuperFours {
  using X = RoundedSuperBlock;
  static constexpr bool kInOrder = true, kLarge = kBundles > 1;
  static constexpr int64_t kFifths = 4 * kGranule;
  static constexpr int64_t kCodesAt = kFifths + (kBits == 5 ? 8 * kGranule : 0);
  static constexpr int64_t kBytes = kCodesAt + 32 * kGranule;

  template <int kRows, int kIndex>
  [[gnu::always_inline]] static void add_part(Place w, Ints scales, const X* x, int64_t rows,
                                              Ints* totals) {
    constexpr bool kHigh = kIndex % 2 != 0;
    const Scales scale = make_scales(byte_of<kIndex % 4>(scales));
    const Place packed = w + (kCodesAt + kIndex / 2 * 8 * kGranule);
    Bytes codes[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const Bytes four = load_ints(packed + i * kGranule);
      codes[i] = kHigh ? high_codes(four) : low_codes(four);
      if constexpr (kBits == 5) {
        const Bytes fifths = shift_right<kIndex>(load_ints(w + (kFifths + i * kGranule)));
        codes[i] = either(codes[i], shift_left<4>(both(fifths, broadcast(0x01010101))));
      }
    }
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      Ints parts[kTogether];
      dot<(1 << kBits) - 1>(codes, x + first, 32 * kIndex, parts, scale);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
        totals[first + i] = kIndex == 0 ? parts[i] : add(totals[first + i], parts[i]);
    });
  }

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead& ahead) {
    const Ints first = load_ints(w + kGranule), second = load_ints(w + 2 * kGranule),
               third = load_ints(w + 3 * kGranule);
    const Ints six = broadcast(0x3f3f3f3f), four = broadcast(0x0f0f0f0f),
               top = broadcast(0x30303030);
    const Ints scales[2] = {both(first, six),
                            either(both(third, four), both(shift_right<2>(first), top))};
    const Ints minima[2] = {both(second, six), either(both(shift_right<4>(third), four),
                                                      both(shift_right<2>(second), top))};
    Ints totals[kRowsAtOnce];
    constexpr int64_t kPart = (kBundles * kBytes / 8 + 63) / 64 * 64;
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 0>(w, scales[0], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 1>(w, scales[0], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 2>(w, scales[0], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 3>(w, scales[0], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 4>(w, scales[1], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 5>(w, scales[1], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 6>(w, scales[1], x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 7>(w, scales[1], x, rows, totals);
    Ints minimum[8];  // each twice, in 16 bits
    const auto twice = [](Ints a) { return either(a, shift_left<16>(a)); };
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      minimum[4 * i] = twice(byte_of<0>(minima[i]));
      minimum[4 * i + 1] = twice(byte_of<1>(minima[i]));
      minimum[4 * i + 2] = twice(byte_of<2>(minima[i]));
      minimum[4 * i + 3] = twice(byte_of<3>(minima[i]));
    }
    const Ints pair = load_ints(w);
    const Reals scale = low_halves(pair), step = high_halves(pair);
    for (int64_t r = 0; r < rows; ++r) {
      Ints below = zero_ints();
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        below = add(below, multiply_pairs(minimum[i], broadcast(load_word(x[r].sums + 2 * i))));
      const Reals of_x = broadcast(x[r].scale);
      sums[r] = multiply_add(to_reals(totals[r]), multiply(scale, of_x), sums[r]);
      sums[r] = subtract_product(sums[r], to_reals(below), multiply(step, of_x));
    }
  }
};

/// Super-blocks of 256: codes of six bits, less 32, with a scale of 8 bits for each 16 elements. Of
/// each half of 128 elements, 64 bytes hold the low four bits, and 32 bytes the high two, of
/// elements 32 apart.
struct SuperSixes {
  using X = RoundedSuperBlock;
  static constexpr bool kInOrder = false, kLarge = kBundles > 1;
  static constexpr int64_t kBytes = 16 + 52 * kGranule;

  /// Products of 16 elements, the kPart-th of each quarter, of the quarters kQuarter and
  /// kQuarter + 2 of a half, which share the bytes of their low bits.
  template <int kRows, int kHalf, int kPart, int kQuarter>
  [[gnu::always_inline]] static void add_part(Place w, const Ints* scales, const X* x, int64_t rows,
                                              Ints* totals) {
    constexpr int kByte = 2 * kQuarter + kPart;  // which of the four scales in a word
    const Scales scale_low = make_scales(signed_byte_of<kByte>(scales[2 * kHalf])),
                 scale_high = make_scales(signed_byte_of<kByte>(scales[2 * kHalf + 1]));
    const Ints top = broadcast(0x30303030);
    Bytes low[4], high[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * kPart + i;
      const Bytes four = load_ints(w + (16 + (16 * kHalf + 8 * kQuarter + at) * kGranule));
      const Bytes two = load_ints(w + (16 + (32 + 8 * kHalf + at) * kGranule));
      low[i] = add_bits(low_codes(four), shift_left<4 - 2 * kQuarter>(two), top);
      high[i] =
          add_bits(high_codes(four), kQuarter == 0 ? two : shift_right<2 * kQuarter>(two), top);
    }
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      constexpr int kAt = 128 * kHalf + 32 * kQuarter + 16 * kPart;
      Ints parts[2][kTogether];
      dot<63>(low, x + first, kAt, parts[0], scale_low);
      dot<63>(high, x + first, kAt + 64, parts[1], scale_high);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const Ints part = add(parts[0][i], parts[1][i]);
        totals[first + i] = kHalf + kPart + kQuarter == 0 ? part : add(totals[first + i], part);
      }
    });
  }

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead& ahead) {
    Ints scales[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) scales[i] = load_ints(w + (16 + (48 + i) * kGranule));
    Ints totals[kRowsAtOnce];
    constexpr int64_t kPart = (kBundles * kBytes / 8 + 63) / 64 * 64;
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 0, 0, 0>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 0, 0, 1>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 0, 1, 0>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 0, 1, 1>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 1, 0, 0>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 1, 0, 1>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 1, 1, 0>(w, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kPart);
    add_part<kRows, 1, 1, 1>(w, scales, x, rows, totals);
    Ints pairs[8];  // two scales of 16 elements, in 16 bits each
    const auto pair = [](Ints low, Ints high) {
      return either(both(low, broadcast(0xffff)), shift_left<16>(high));
    };
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      pairs[2 * i] = pair(signed_byte_of<0>(scales[i]), signed_byte_of<1>(scales[i]));
      pairs[2 * i + 1] = pair(signed_byte_of<2>(scales[i]), signed_byte_of<3>(scales[i]));
    }
    const Reals scale = load_halves(w);
    for (int64_t r = 0; r < rows; ++r) {
      Ints offset = zero_ints();
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        offset = add(offset, multiply_pairs(pairs[i], broadcast(load_word(x[r].sums + 2 * i))));
      const Ints total = subtract(totals[r], shift_left<5>(offset));
      sums[r] = multiply_add(to_reals(total), multiply(scale, broadcast(x[r].scale)), sums[r]);
    }
  }
};

/// Whether what lies ahead is fetched. One stream of bundles that are read in order is known to the
/// processor's own prefetching, which was measured to be faster then.
template <class Format>
constexpr bool kFetches = kBundles > 1 || !Format::kInOrder;

/// All rows, or kRows where that is not 0: then their sums stay in registers.
template <class Format, int kRows>
[[gnu::always_inline]] inline void multiply_rows(const IntegerTask& t) {
  const auto* x = static_cast<const typename Format::X*>(t.x);
  const int64_t x_blocks = kInGroups<Format> ? t.group_blocks : 1;  // of a block of the weight
  const int64_t bytes = x_blocks * Format::kBytes;
  Ahead ahead(t);
  for (int64_t bundle = 0; bundle < t.bundles; bundle += kBundles) {
    const bool two = kBundles == 2 && bundle + 1 < t.bundles;
    const Place first{t.weight + bundle * t.bundle_bytes, two ? t.bundle_bytes : 0};
    for (int64_t row = 0; row < (kRows > 0 ? kRows : t.rows); row += kRowsAtOnce) {
      const int64_t rows =
          kRows > 0 ? kRows : (t.rows - row < kRowsAtOnce ? t.rows - row : kRowsAtOnce);
      Reals sums[kRows > 0 ? kRows : kRowsAtOnce];
      for (int64_t r = 0; r < rows; ++r) sums[r] = zero_reals();
      for (int64_t block = 0; block < t.blocks; ++block) {
        const Place w = first + block * bytes;
        if (kFetches<Format> && row == 0) {
          ahead.begin(w, bytes);
          if (!Format::kLarge) ahead.fetch(kBundles * bytes);
        }
        if (kRows == 0 && !kFetches<Format> && row == 0 && t.rows >= kManyRows)
          Ahead::fetch(w.at + t.bundle_bytes, bytes);  // of the next bundle
        const auto* block_x = x + block * x_blocks * t.x_rows + row;
        if constexpr (kInGroups<Format>)
          Format::template add_group<kRows>(t, w, bundle, two, block, block_x, rows, sums);
        else
          Format::template add_block<kRows>(w, block_x, rows, sums, ahead);
      }
      float* y = t.y + row * t.y_stride + 8 * bundle;
      const Reals scale = broadcast(t.scale);
      for (int64_t r = 0; r < rows; ++r, y += t.y_stride)
        store_outputs(t.accumulate ? multiply_add(sums[r], scale, load_outputs(y, two))
                                   : multiply(sums[r], scale),
                      y, two);
    }
  }
}

template <class Format>
void multiply(const IntegerTask& t) {
  if (t.rows == 1)
    multiply_rows<Format, 1>(t);
  else
    multiply_rows<Format, 0>(t);
}

/// Rounds kSize elements; returns their scale.
template <int kSize>
[[gnu::always_inline]] inline float round_block(const float* x, int8_t* codes) {
  int32_t largest = 0;  // magnitudes order like the integers of their bits
  for (int i = 0; i < kSize; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  constexpr int32_t kInfinite = 0x7f800000, kLeast = 0x0d800000;  // 2^-100
  float magnitude;
  std::memcpy(&magnitude, &largest, sizeof magnitude);
  const float inverse = largest < kLeast || largest >= kInfinite ? 0.0f : 127 / magnitude;
  constexpr float kShift = 0x1.8p23f;  // adding it rounds to whole numbers
  for (int i = 0; i < kSize; ++i) {
    const float rounded = (largest >= kInfinite ? 0.0f : x[i]) * inverse + kShift;
    int32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    codes[i] = static_cast<int8_t>(bits);
  }
  return largest >= kInfinite ? __builtin_nanf("") : magnitude / 127;
}

void round(const float* x, int64_t blocks, RoundedBlock* to, int64_t step) {
  for (int64_t b = 0; b < blocks; ++b, x += 32, to += step) {
    to->scale = round_block<32>(x, to->codes);
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += to->codes[i];
    to->sum = sum;
  }
}
void round_halves(const float* x, int64_t blocks, RoundedBlock* to, int64_t step) {
  for (int64_t b = 0; b < blocks; ++b, x += 32, to += step) {
    RoundedBlock block;
    round(x, 1, &block, 1);
    for (int i = 0; i < 16; ++i) {
      to->codes[i] = block.codes[2 * i];
      to->codes[16 + i] = block.codes[2 * i + 1];
    }
    to->scale = block.scale;
    to->sum = block.sum;
  }
}
void round_super(const float* x, int64_t blocks, RoundedSuperBlock* to, int64_t step) {
  for (int64_t b = 0; b < blocks; ++b, x += 256, to += step) {
    to->scale = round_block<256>(x, to->codes);
    for (int part = 0; part < 16; ++part) {
      int32_t sum = 0;
      for (int i = 0; i < 16; ++i) sum += to->codes[16 * part + i];
      to->sums[part] = static_cast<int16_t>(sum);
    }
  }
}

/// Four chains of products of four-bit codes, each as long as 16 bits allow. Returns the
/// multiply-adds of a step.
int64_t spin(int64_t steps) {
  constexpr int kChains = 4, kLength = 8;
  Bytes codes = broadcast(0x07050301);
  Ints x = broadcast(0x01fe03fc);
  Ints total[kChains];
  for (Ints& each : total) each = zero_ints();
  for (int64_t i = 0; i < steps; ++i) {
    Sums sums[kChains];
#pragma GCC unroll 4
    for (Sums& each : sums) each = begin_sums();
#pragma GCC unroll 8
    for (int j = 0; j < kLength; ++j)
#pragma GCC unroll 4
      for (Sums& each : sums) each = add_products(each, codes, x);
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) total[c] = add(total[c], finish(sums[c]));
    asm volatile("" : "+m"(codes), "+m"(x));
  }
  asm volatile("" : : "m"(total));
  return int64_t{kChains} * kLength * 4 * 8 * kBundles;
}

constexpr IntegerKernels make_kernels(const char* name) {
  return {name,
          kBundles,
          round,
          round_halves,
          round_super,
          {multiply<Fours<4, false>>, multiply<Fours<4, true>>, multiply<Fours<5, false>>,
           multiply<Fours<5, true>>, multiply<Eights>, multiply<SuperFours<4>>,
           multiply<SuperFours<5>>, multiply<SuperSixes>, multiply<Groups<4, false>>,
           multiply<Groups<4, true>>, multiply<Groups<8, false>>, multiply<Groups<8, true>>},
          spin};
}

}  // namespace
}  // namespace mixtral::cpu
