#include "cuda_plan/attention_part.h"

#include <algorithm>

namespace mixtral::cuda_plan {
namespace {

constexpr int64_t kMostScores = int64_t{2} << 30;  // bytes
constexpr int64_t kLeastLength = 128;
constexpr int64_t kLengthStep = 64;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/// The largest divisor of n that is at most `most`.
int64_t divisor(int64_t n, int64_t most) {
  int64_t best = 1;
  for (int64_t d = 1; d <= std::min(n, most); ++d)
    if (n % d == 0) best = d;
  return best;
}

}  // namespace

bool suits_cudnn(const ops::Heads& heads, int64_t length) {
  return heads.width % 8 == 0 && heads.width <= 128 && length >= kLeastLength &&
         length % kLengthStep == 0;
}

AttentionPart attention_part(const ops::Heads& heads, int64_t sequences, int64_t length,
                             int64_t window) {
  const bool narrow = window > 0 && window < length / 2;
  if (!suits_cudnn(heads, length) || narrow) return {};
  const int64_t group = heads.query / heads.kv;
  const int64_t scores = group * round_up(length, 64) * round_up(length, 128) * 2;  // a kv head's
  if (scores > kMostScores) return {};
  AttentionPart part;
  part.kv_heads = divisor(heads.kv, kMostScores / scores);
  part.sequences =
      part.kv_heads == heads.kv ? divisor(sequences, kMostScores / (scores * part.kv_heads)) : 1;
  part.bytes = part.sequences * part.kv_heads * scores;
  return part;
}

int64_t split_kv_tokens(const ops::CachedAttention& op) {
  constexpr int64_t kLeastRun = 8;  // tokens that are worth a tile
  const int64_t tokens = op.qkv.dim(0);
  return tokens - op.decode_rows < kLeastRun ? tokens : op.decode_rows;
}

int64_t scratch_bytes(const ops::AttentionBackward& op) {
  const int64_t sequences = op.sequence_starts.dim(0) - 1;
  if (op.qkv.dtype() != Dtype::bf16 || op.qkv.dim(0) != sequences * op.longest) return 0;
  return attention_part(op.heads, sequences, op.longest, op.window).bytes;
}

}  // namespace mixtral::cuda_plan
