#pragma once

#include "ops/attention.h"

namespace mixtral::ops {

/// Whether a GPU leaves attention over bf16 sequences of one length to cuDNN. Its plans take up to
/// seconds and are kept, so lengths are multiples of 64: records of any length must not each have
/// their own.
bool suits_cudnn(const Heads& heads, int64_t length);

/// What cuDNN computes of AttentionBackward at a time. It keeps the scores in scratch memory, which
/// must not take more than 2 GiB.
struct AttentionPart {
  int64_t sequences = 0, kv_heads = 0;
  int64_t bytes = 0;  // of the scores; 0: it does not compute this gradient
};
/// For `sequences` of one length. A narrow window is left to other kernels, because cuDNN stores
/// the scores outside of it, too.
AttentionPart attention_part(const Heads& heads, int64_t sequences, int64_t length, int64_t window);

/// How many tokens, the first ones, a GPU gives several blocks each (split-KV), which suits few
/// tokens with many keys. The others are taken in tiles of many tokens, which suits long runs.
int64_t split_kv_tokens(const CachedAttention& op);

}  // namespace mixtral::ops
