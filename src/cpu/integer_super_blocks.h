// The kernels' formats in super-blocks of 256 elements, whose blocks have scales in whole numbers.
// Each has a struct, as those of integer_blocks.h.
#pragma once

#include "cpu/integer_dot.h"

namespace mixtral::cpu {
namespace {

/// totals[r] += scale · Σ codes · x[r].codes over kCodes · 4 elements from `at` on, of all rows.
/// The totals are nothing yet where kFirst.
template <int kBits, int kRows, bool kFirst, int kCodes>
[[gnu::always_inline]] inline void add_scaled(const Bytes (&codes)[kCodes], const Scales& scale,
                                              const RoundedSuperBlock* x, int at, int64_t rows,
                                              Ints* totals) {
  for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
    constexpr int kTogether = decltype(together)::value;
    Ints parts[kTogether];
    dot<(1 << kBits) - 1>(codes, x + first, at, parts, scale);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
      totals[first + i] = kFirst ? parts[i] : add(totals[first + i], parts[i]);
  });
}

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
                                              Ints* totals, Ahead& ahead) {
    if constexpr (kLarge) ahead.fetch(kFetched<SuperFours>);
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
    add_scaled<kBits, kRows, kIndex == 0>(codes, scale, x, 32 * kIndex, rows, totals);
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
    add_part<kRows, 0>(w, scales[0], x, rows, totals, ahead);
    add_part<kRows, 1>(w, scales[0], x, rows, totals, ahead);
    add_part<kRows, 2>(w, scales[0], x, rows, totals, ahead);
    add_part<kRows, 3>(w, scales[0], x, rows, totals, ahead);
    add_part<kRows, 4>(w, scales[1], x, rows, totals, ahead);
    add_part<kRows, 5>(w, scales[1], x, rows, totals, ahead);
    add_part<kRows, 6>(w, scales[1], x, rows, totals, ahead);
    add_part<kRows, 7>(w, scales[1], x, rows, totals, ahead);
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
                                              Ints* totals, Ahead& ahead) {
    if constexpr (kLarge) ahead.fetch(kFetched<SuperSixes>);
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
    add_part<kRows, 0, 0, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 0, 0, 1>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 0, 1, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 0, 1, 1>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 0, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 0, 1>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 1, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 1, 1>(w, scales, x, rows, totals, ahead);
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

/// Super-blocks of 256: codes of two bits, with third bits or without, and a scale for each 16
/// elements: of four bits, beside a minimum of four; or, with third bits, of six, less 32, and the
/// codes less 4. Of each half of 128 elements, 32 bytes hold two bits of elements 32 apart. Byte l
/// of the third bits has those of elements l, l + 32, l + 64 and so on.
template <int kBits>
struct SuperTwos {
  using X = RoundedSuperBlock;
  static constexpr bool kThirds = kBits == 3;
  static constexpr bool kInOrder = true, kLarge = kBundles > 1;
  static constexpr int64_t kThirdsAt = 16;
  static constexpr int64_t kCodesAt = kThirds ? kThirdsAt + 8 * kGranule : 4 * kGranule;
  static constexpr int64_t kCodesEnd = kCodesAt + 16 * kGranule;
  static constexpr int64_t kScalesAt = kThirds ? kCodesEnd : 0;
  static constexpr int64_t kHalvesAt = kThirds ? 0 : kCodesEnd;
  static constexpr int64_t kBytes = kCodesEnd + (kThirds ? 3 : 1) * kGranule;

  template <int kIndex>
  [[gnu::always_inline]] static Ints scale_of(const Ints* scales) {
    const Ints scale = byte_of<kIndex % 4>(scales[kIndex / 4]);
    return kThirds ? subtract(scale, broadcast(32)) : scale;
  }
  /// Two neighbours in 16 bits each.
  template <int kIndex>
  [[gnu::always_inline]] static Ints pair_of(const Ints* scales) {
    return either(both(scale_of<2 * kIndex>(scales), broadcast(0xffff)),
                  shift_left<16>(scale_of<2 * kIndex + 1>(scales)));
  }

  template <int kRows, int kHalf, int kPart, int kQuarter>
  [[gnu::always_inline]] static void add_quarter(const Bytes (&twos)[4], const Bytes (&thirds)[4],
                                                 const Ints* scales, const X* x, int64_t rows,
                                                 Ints* totals) {
    constexpr int kIndex = 8 * kHalf + 2 * kQuarter + kPart;  // of 16 elements
    constexpr int kThird = 4 * kHalf + kQuarter;              // which bit
    const Scales scale = make_scales(scale_of<kIndex>(scales));
    Bytes codes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      codes[i] = both(shift_right<2 * kQuarter>(twos[i]), broadcast(0x03030303));
      if constexpr (kThirds) {
        Bytes third;
        if constexpr (kThird < 2)
          third = shift_left<2 - kThird>(thirds[i]);
        else
          third = shift_right<kThird - 2>(thirds[i]);
        codes[i] = add_bits(codes[i], third, broadcast(0x04040404));
      }
    }
    add_scaled<kBits, kRows, kIndex == 0>(codes, scale, x, 16 * kIndex, rows, totals);
  }

  /// The products of every second 16 elements of a half.
  template <int kRows, int kHalf, int kPart>
  [[gnu::always_inline]] static void add_part(Place w, const Ints* scales, const X* x, int64_t rows,
                                              Ints* totals, Ahead& ahead) {
    Bytes twos[4], thirds[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      twos[i] = load_ints(w + (kCodesAt + (8 * kHalf + 4 * kPart + i) * kGranule));
      thirds[i] = kThirds ? load_ints(w + (kThirdsAt + (4 * kPart + i) * kGranule)) : twos[i];
    }
    if constexpr (kLarge) ahead.fetch(kFetched<SuperTwos>);
    add_quarter<kRows, kHalf, kPart, 0>(twos, thirds, scales, x, rows, totals);
    add_quarter<kRows, kHalf, kPart, 1>(twos, thirds, scales, x, rows, totals);
    if constexpr (kLarge) ahead.fetch(kFetched<SuperTwos>);
    add_quarter<kRows, kHalf, kPart, 2>(twos, thirds, scales, x, rows, totals);
    add_quarter<kRows, kHalf, kPart, 3>(twos, thirds, scales, x, rows, totals);
  }

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead& ahead) {
    Ints scales[4], minima[4];
    if constexpr (kThirds) {
      const Ints first = load_ints(w + kScalesAt), second = load_ints(w + (kScalesAt + kGranule)),
                 top = load_ints(w + (kScalesAt + 2 * kGranule));
      const Ints two = broadcast(0x30303030);
      scales[0] = add_bits(low_codes(first), shift_left<4>(top), two);
      scales[1] = add_bits(low_codes(second), shift_left<2>(top), two);
      scales[2] = add_bits(high_codes(first), top, two);
      scales[3] = add_bits(high_codes(second), shift_right<2>(top), two);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Ints pairs = load_ints(w + (kScalesAt + i * kGranule));
        scales[i] = low_codes(pairs);
        minima[i] = high_codes(pairs);
      }
    }
    Ints totals[kRowsAtOnce];
    add_part<kRows, 0, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 0, 1>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 0>(w, scales, x, rows, totals, ahead);
    add_part<kRows, 1, 1>(w, scales, x, rows, totals, ahead);
    // What is subtracted: the minima, or 4 times the scales, times the sums of x.
    const Ints* const of_sums = kThirds ? scales : minima;
    const Ints pairs[8] = {pair_of<0>(of_sums), pair_of<1>(of_sums), pair_of<2>(of_sums),
                           pair_of<3>(of_sums), pair_of<4>(of_sums), pair_of<5>(of_sums),
                           pair_of<6>(of_sums), pair_of<7>(of_sums)};
    Reals scale, step;
    if constexpr (kThirds) {
      scale = load_halves(w + kHalvesAt);
    } else {
      const Ints halves = load_ints(w + kHalvesAt);
      scale = low_halves(halves);
      step = high_halves(halves);
    }
    for (int64_t r = 0; r < rows; ++r) {
      Ints below = zero_ints();
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        below = add(below, multiply_pairs(pairs[i], broadcast(load_word(x[r].sums + 2 * i))));
      const Reals of_x = broadcast(x[r].scale);
      if constexpr (kThirds) {
        const Ints total = subtract(totals[r], shift_left<2>(below));
        sums[r] = multiply_add(to_reals(total), multiply(scale, of_x), sums[r]);
      } else {
        sums[r] = multiply_add(to_reals(totals[r]), multiply(scale, of_x), sums[r]);
        sums[r] = subtract_product(sums[r], to_reals(below), multiply(step, of_x));
      }
    }
  }
};

/// Super-blocks of 256: a scale of six bits, less 32, for each 32 elements, and codes of four bits
/// that are places in the list of levels.
struct SuperLevels {
  using X = RoundedSuperBlock;
  static constexpr bool kInOrder = true, kLarge = kBundles > 1;
  static constexpr int64_t kCodesAt = 2 * kGranule, kBytes = kCodesAt + 32 * kGranule;

  template <int kRows, int kIndex>
  [[gnu::always_inline]] static void add_part(Place w, Ints low, Ints high, const X* x,
                                              int64_t rows, Ints* totals, Ahead& ahead) {
    if constexpr (kLarge) ahead.fetch(kFetched<SuperLevels>);
    const Ints four = both(shift_right<4 * kIndex>(low), broadcast(15)),
               two = both(shift_right<16 + 2 * kIndex>(high), broadcast(3));
    const Ints scale = subtract(either(four, shift_left<4>(two)), broadcast(32));
    SignedBytes codes[8];
    load_levels(w + (kCodesAt + 4 * kIndex * kGranule), codes);
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      Ints parts[kTogether];
      dot_signed(codes, x + first, 32 * kIndex, parts);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const Ints part = multiply(parts[i], scale);
        totals[first + i] = kIndex == 0 ? part : add(totals[first + i], part);
      }
    });
  }

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead& ahead) {
    const Ints head = load_ints(w), low = load_ints(w + kGranule);  // head: the scale, and two bits
    Ints totals[kRowsAtOnce];
    add_part<kRows, 0>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 1>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 2>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 3>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 4>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 5>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 6>(w, low, head, x, rows, totals, ahead);
    add_part<kRows, 7>(w, low, head, x, rows, totals, ahead);
    const Reals scale = low_halves(head);
    for (int64_t r = 0; r < rows; ++r)
      sums[r] = multiply_add(to_reals(totals[r]), multiply(scale, broadcast(x[r].scale)), sums[r]);
  }
};

}  // namespace
}  // namespace mixtral::cpu
