#pragma once

#include <cuda_runtime_api.h>

#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention on tensor cores: bf16, heads up to 128 wide in multiples of 8, aligned rows; any
/// sequences and window. False for others.
bool mma_attention(const ops::Attention& op, cudaStream_t stream);
bool mma_attention_backward(const ops::AttentionBackward& op, cudaStream_t stream);

/// The rows that mma_cached_attention takes at a time, or 0 when it does not take the op.
int mma_cached_rows(const ops::CachedAttention& op);
/// The runs of kLeastRunOfTiles and more tokens of one sequence.
void mma_cached_attention(const ops::CachedAttention& op, cudaStream_t stream);

}  // namespace mixtral::cuda
