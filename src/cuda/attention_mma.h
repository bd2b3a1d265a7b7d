#pragma once

#include <cuda_runtime_api.h>

#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention on tensor cores: bf16, heads up to 128 wide in multiples of 8, aligned rows; any
/// sequences and window. False for others.
bool mma_attention(const ops::Attention& op, cudaStream_t stream);
bool mma_attention_backward(const ops::AttentionBackward& op, cudaStream_t stream);

/// The same over a cache, for runs of tokens.
bool mma_cached_attention(const ops::CachedAttention& op, cudaStream_t stream);

}  // namespace mixtral::cuda
