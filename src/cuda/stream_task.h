#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/fixed_rows.h"

/// What streamed products (stream_kernel.cuh) are given.
namespace mixtral::cuda {

constexpr int kMostStreamGroups = 256;
constexpr int kMostGatedRows = 64;

/// Integers of 4 and 8 bits have a scale and a minimum a block, both bf16; in `_half`, both f16.
/// GGUF's blocks are in planes (ops/block_planes.h).
enum class StreamCodec { bf16, fp8, nf4, int4, int8, int4_half, int8_half, q8_0, q4_0, q4_k };

template <class Y>
struct StreamTask {
  CUtensorMap codes;  // [rows of all groups, code_bytes], in boxes of a line of some rows
  const char* rows_of_codes;
  const char *scales, *minima;
  const __nv_bfloat16* x;
  FixedRows fixed;  // the same, where codes are integers
  Y* y;
  const int* offsets;    // [G+1], or null: one group of `rows`
  const float* weights;  // of SwiGLU's results
  const int* source;
  int code_bytes;            // of a row of weights
  int scale_stride;          // bytes from one row's scales to the next one's
  int rows, groups, inputs;  // of x; of weights; of both
  int outputs;               // rows of y's part; with SwiGLU half of a group's weights' rows
  int scale_words;           // 4 bytes each, of a row
  int block_shift;           // log2 of the columns that share a scale
  int64_t y_stride;
  uint64_t policy;  // of the second-level cache, for weights
  float scale;
  bool accumulate;
  bool early;  // offsets and weights are read before the kernel in front has ended
};

/// The same where scales are copied in StreamShape's chunks, and minima in others, if there are
/// any. Tasks without them are spared the maps: with one sequence these would cost a hundredth of a
/// step.
template <class Y, int arrays>
struct ChunkedStreamTask : StreamTask<Y> {
  CUtensorMap chunks[arrays];  // [rows of all groups, bytes], in boxes of an item
};

}  // namespace mixtral::cuda
