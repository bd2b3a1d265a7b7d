#pragma once

#include <cuda_runtime_api.h>

#include "cuda/product.h"

namespace mixtral::cuda {

/// Products of bf16 operands, grouped or not, on tensor cores; results are bf16, and f32 for a
/// weight's gradient. Returns false when types are others, or shapes or addresses are not multiples
/// of 16 bytes.
bool grouped_product(const Product&, Scratch&, cudaStream_t);

/// ops::GroupedMatmulSwiGlu in bf16.
struct GatedProduct {
  const void *x, *weight;  // [rows, inputs], [groups, 2 width, inputs]
  void *gate_up, *h;       // [rows, 2 width], or null when it isn't kept; [rows, width]
  const float* weights;
  const int *source, *offsets;
  int64_t rows, inputs, width, groups;
};
/// False as above.
bool grouped_gate(const GatedProduct&, cudaStream_t);

}  // namespace mixtral::cuda
