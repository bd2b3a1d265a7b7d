// The integer kernels, written once in the vectors of integer_simd.h. For each bundle of outputs
// and each block of k, the codes are unpacked into registers once and multiplied by all rows.
//
// Each file that includes this compiles it for its instruction set.
#pragma once

#include "cpu/integer_blocks.h"
#include "cpu/integer_super_blocks.h"

namespace mixtral::cpu {
namespace {

/// Whether what lies ahead is fetched. One stream of bundles that are read in order is known to the
/// processor's own prefetching, which was measured to be faster then.
template <class Format>
constexpr bool kFetches = kBundles > 1 || !Format::kInOrder;
// Rows whose products take so long that the processor does not prefetch the next bundle in time.
constexpr int64_t kManyRows = 16;

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
           multiply<Fours<5, true>>, multiply<Eights<false>>, multiply<SuperFours<4>>,
           multiply<SuperFours<5>>, multiply<SuperSixes>, multiply<SuperTwos<2>>,
           multiply<SuperTwos<3>>, multiply<Eights<true>>, multiply<SuperLevels>,
           multiply<Groups<4, false>>, multiply<Groups<4, true>>, multiply<Groups<8, false>>,
           multiply<Groups<8, true>>},
          spin};
}

}  // namespace
}  // namespace mixtral::cpu
