#pragma once

#include <cuda_runtime_api.h>

#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention over a cache in bf16 for runs of tokens, on Hopper's tensor cores: bf16, heads 64 or
/// 128 wide, aligned rows, pages of 8 tokens or more; any sequences and window. False for others.
bool wgmma_cached_attention(const ops::CachedAttention& op, cudaStream_t stream);

}  // namespace mixtral::cuda
