#pragma once

#include <cstdint>

namespace mixtral::cpu {

// Products of weights in blocks or groups of whole numbers, in interleaved8: x is rounded to 8
// bits, and dot products within a block of x are sums of integers, which are exact. Each output
// then is one chain of fused multiply-adds over the blocks of k, in order. So the bits depend
// neither on the rows beside a row nor on the instruction set.
//
// This header is included by files that are compiled for one instruction set: nothing in it may
// become a function that is shared with others.

/// Formats that have kernels; an index of IntegerKernels::multiply.
enum class IntegerFormat : uint8_t {
  // GGUF's.
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,
  q2_k,
  q3_k,
  iq4_nl,
  iq4_xs,
  // MLX's groups of 32, 64 or 128, whose scales and minima stand apart.
  int4_f16,
  int4_bf16,
  int8_f16,
  int8_bf16,
};
inline constexpr int kIntegerFormats = 16;

/// 32 rounded elements of x, for formats with blocks of 32. Beside groups of 4 bits, whose bytes
/// hold neighbours, the elements at even places come first.
struct RoundedBlock {
  int8_t codes[32];
  float scale;
  int32_t sum;  // of the codes
};
/// 256 rounded elements of x, for formats with super-blocks of 256.
struct RoundedSuperBlock {
  int8_t codes[256];
  float scale;
  int16_t sums[16];  // of 16 codes each
};

/// Some rows of rounded x times some bundles of eight outputs of one group.
struct IntegerTask {
  const uint8_t* weight = nullptr;  // the first bundle
  int64_t bundles = 0;
  int64_t bundle_bytes = 0;
  const uint8_t* next = nullptr;  // the weight that the thread probably needs after this
  int64_t blocks = 0;             // of k; groups, of a format in groups
  // Of a format in groups: those of the first bundle, bytes from one bundle to the next, and how
  // many blocks of x a group has.
  const uint8_t *scales = nullptr, *minima = nullptr;
  int64_t scale_bytes = 0;
  int64_t group_blocks = 1;
  const void* x = nullptr;  // rounded: block b of row r is x[b * x_rows + r]
  int64_t x_rows = 0;
  int64_t rows = 0;
  float* y = nullptr;  // y[r, o] = scale · sum (+ y if accumulate)
  int64_t y_stride = 0;
  float scale = 1;
  bool accumulate = false;
};

/// The kernels of one instruction set.
struct IntegerKernels {
  const char* name = nullptr;
  int bundles = 1;  // that are read side by side
  /// Rounds `blocks` blocks of a row of x (see ops/rounding.h) to to[0], to[step], to[2 · step],
  /// ...
  void (*round)(const float* x, int64_t blocks, RoundedBlock* to, int64_t step) = nullptr;
  /// The same with elements at even places first.
  void (*round_halves)(const float* x, int64_t blocks, RoundedBlock* to, int64_t step) = nullptr;
  void (*round_super)(const float* x, int64_t blocks, RoundedSuperBlock* to,
                      int64_t step) = nullptr;
  void (*multiply[kIntegerFormats])(const IntegerTask& task) = {};
  /// Does `steps` times as many multiply-adds of codes as it returns, in registers.
  int64_t (*spin)(int64_t steps) = nullptr;
};

// Those that are compiled in; null elsewhere.
extern const IntegerKernels* const kIntegerAvx2;
extern const IntegerKernels* const kIntegerAvx512;
extern const IntegerKernels* const kIntegerVnni;
extern const IntegerKernels* const kIntegerVnniNarrow;
extern const IntegerKernels* const kIntegerNeon;
extern const IntegerKernels* const kIntegerDotProduct;

}  // namespace mixtral::cpu
