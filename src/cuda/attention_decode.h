#pragma once

#include <cuda_runtime_api.h>

#include "cuda/scratch.h"
#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention of decode rows over a cache on tensor cores: bf16 activations; a cache in bf16, f16 or
/// codes; heads up to 128 wide in multiples of 16, in aligned rows. False for others. `early`:
/// there is one token. Kernels that may still run write its q, key and value, but nothing else that
/// the op reads.
bool mma_decode_attention(const ops::CachedAttention& op, int processors, bool early,
                          Scratch& scratch, cudaStream_t stream);

}  // namespace mixtral::cuda
