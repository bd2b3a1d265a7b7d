// What the kernels of all formats share: dot products of a block's codes, turns of rows, and
// fetching ahead. For files that are compiled for one instruction set; nothing here is shared
// between them.
#pragma once

#include "cpu/integer_kernels.h"
#include "cpu/integer_simd.h"
#include "ops/format_levels.h"

namespace mixtral::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 32;  // whose sums stay in the L1 cache
// Bytes of the weight that are fetched before they are used; the most is a part of the L2 cache.
constexpr int64_t kLeastAhead = 16 << 10, kMostAhead = 128 << 10;
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

/// Bytes that a format in large blocks has fetched at each of eight places in a block.
template <class Format>
constexpr int64_t kFetched = (kBundles * Format::kBytes / 8 + 63) / 64 * 64;

/// The sum of x's codes in 32 elements from `at` on.
[[gnu::always_inline]] inline int32_t sum_of(const RoundedBlock& x, int) { return x.sum; }
[[gnu::always_inline]] inline int32_t sum_of(const RoundedSuperBlock& x, int at) {
  return x.sums[at / 16] + x.sums[at / 16 + 1];
}

/// to[r] = Σ codes · x[r].codes over 32 elements from `at` on.
template <int kRows, class X>
[[gnu::always_inline]] inline void dot_signed(const SignedBytes (&codes)[8], const X* x, int at,
                                              Ints (&to)[kRows]) {
  constexpr int kChains = kRows == 1 ? 2 : 1;
  Ints products[kRows * kChains];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    products[r * kChains] = begin_signed(sum_of(x[r], at));
    if constexpr (kChains == 2) products[1] = zero_ints();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Ints& sum = products[r * kChains + i % kChains];
      sum = add_signed(sum, codes[i], broadcast(load_word(x[r].codes + at + 4 * i)));
      if constexpr (kRows > 1) sum = in_order(sum);
    }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    to[r] = kChains == 2 ? add(products[0], products[1]) : products[r];
}

/// Codes of four bits of 32 elements: those in the low halves of the bytes, then the others.
[[gnu::always_inline]] inline void load_fours(Place packed, Bytes (&codes)[8]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Bytes both_halves = load_ints(packed + i * kGranule);
    codes[i] = low_codes(both_halves);
    codes[4 + i] = high_codes(both_halves);
  }
}
/// The levels that such codes are places of in their list.
[[gnu::always_inline]] inline void load_levels(Place packed, SignedBytes (&levels)[8]) {
  Bytes codes[8];
  load_fours(packed, codes);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) levels[i] = make_signed(look_up(ops::kIq4Levels, codes[i]));
}

}  // namespace
}  // namespace mixtral::cpu
