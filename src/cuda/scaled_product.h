#pragma once

#include <cuda_runtime_api.h>

#include "ops/moe.h"

namespace mixtral::cuda {

class Scratch;

/// Whether scaled_product takes a product: by a weight in fp8, of bf16 activations that may be
/// rounded to fp8 as well (ops::Operands::fp8).
bool fits_scaled(const ops::GroupedMatmul& op);

/// Such products on tensor cores, which multiply numbers of 8 bits twice as fast as bf16, and read
/// the weight as it is kept. False when it does not take the product.
bool scaled_product(const ops::GroupedMatmul& op, Scratch& scratch, cudaStream_t stream);
/// The same with SwiGlu behind it.
bool scaled_product(const ops::GroupedMatmulSwiGlu& op, Scratch& scratch, cudaStream_t stream);

}  // namespace mixtral::cuda
