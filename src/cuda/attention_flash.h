#pragma once

#include <cuda_runtime_api.h>

#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention and its gradient in f32 arithmetic, of any types, widths up to 256 and sequences.
void flash_attention(const ops::Attention& op, cudaStream_t stream);
void flash_attention_backward(const ops::AttentionBackward& op, cudaStream_t stream);

/// op.delta of the gradient.
void flash_delta_of(const ops::AttentionBackward& op, cudaStream_t stream);

}  // namespace mixtral::cuda
