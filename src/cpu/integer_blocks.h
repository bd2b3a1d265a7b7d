// The kernels' formats with a scale for each block or group, in f16 or bf16. Each has a struct,
// which adds one block's products to the sums of `rows` rows; x[r] is row r's block. kInOrder: a
// block is read from front to back, more or less. kLarge: what lies ahead is fetched in eight
// parts.
#pragma once

#include "cpu/integer_dot.h"

namespace mixtral::cpu {
namespace {

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
    Bytes codes[8];
    load_fours(w + (kBytes - 4 * kGranule), codes);
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
/// Blocks of 32: a scale, and codes of eight bits with a sign, or of four bits that stand for such
/// codes.
template <bool kLevels>
struct Eights {
  using X = RoundedBlock;
  static constexpr bool kInOrder = true, kLarge = false;
  static constexpr int64_t kBytes = 16 + (kLevels ? 4 : 8) * kGranule;

  template <int kRows>
  [[gnu::always_inline]] static void add_block(Place w, const X* x, int64_t rows, Reals* sums,
                                               Ahead&) {
    const Reals scale = load_halves(w);
    SignedBytes codes[8];
    if constexpr (kLevels) {
      load_levels(w + 16, codes);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) codes[i] = make_signed(load_ints(w + (16 + i * kGranule)));
    }
    for_rows<kRows>(rows, [&](auto together, int64_t first) __attribute__((always_inline)) {
      constexpr int kTogether = decltype(together)::value;
      Ints products[kTogether];
      dot_signed(codes, x + first, 0, products);
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
      load_fours(w, codes);
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
        dot_signed(codes, x + first, 0, products);
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

}  // namespace
}  // namespace mixtral::cpu
