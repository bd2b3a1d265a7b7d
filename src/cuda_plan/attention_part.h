#pragma once

#include "ops/attention.h"

/// What the CUDA backend needs, computed without CUDA: for the backend itself, and for plans of a
/// GPU in builds that have no CUDA.
namespace mixtral::cuda_plan {

/// Whether a GPU leaves attention over bf16 sequences of one length to cuDNN. Making a cuDNN plan
/// takes up to seconds and plans are kept, so lengths are multiples of 64: records of any length
/// must not each have a plan of their own.
bool suits_cudnn(const ops::Heads& heads, int64_t length);

/// How much of AttentionBackward cuDNN computes at a time. It keeps the scores in scratch memory,
/// which must not take more than 2 GiB.
struct AttentionPart {
  int64_t sequences = 0, kv_heads = 0;
  int64_t bytes = 0;  // of the scores; 0: cuDNN does not compute this gradient
};
/// For `sequences` of one length. A narrow window is left to other kernels, because cuDNN stores
/// the scores outside of it, too.
AttentionPart attention_part(const ops::Heads& heads, int64_t sequences, int64_t length,
                             int64_t window);

/// How many tokens, the first ones, a GPU gives several blocks each (split-KV), which suits few
/// tokens with many keys. The others are taken in tiles of many tokens, which suits long runs.
int64_t split_kv_tokens(const ops::CachedAttention& op);

/// Backend::scratch_bytes of a GPU: the scores above, when all sequences have the same length.
/// Sequences of different lengths take kernels that need none.
int64_t scratch_bytes(const ops::AttentionBackward& op);

}  // namespace mixtral::cuda_plan
