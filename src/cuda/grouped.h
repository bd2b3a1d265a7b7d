#pragma once

#include <cuda_runtime_api.h>

#include "cuda/product.h"

namespace mixtral::cuda {

/// Grouped products of bf16 operands on tensor cores. False when the shapes or addresses are not
/// multiples of 16 bytes, or the types are others: results are bf16, and f32 for weights.
bool grouped_product(const Product&, int processors, Scratch&, cudaStream_t);

// One kernel a file. Large tiles where there are many rows and columns, small ones else.
void grouped_forward_large(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_forward_small(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_forward_accumulate(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_input_large(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_input_small(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_input_accumulate(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_weight_large(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_weight_small(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_weight_large_accumulate(const Product&, int processors, Scratch&, cudaStream_t);
void grouped_weight_small_accumulate(const Product&, int processors, Scratch&, cudaStream_t);

}  // namespace mixtral::cuda
