#pragma once

#include "ops/common.h"
#include "ops/heads.h"
#include "ops/kv_view.h"

namespace mixtral::ops {

/// Rotary position embedding of queries and keys, in place (Su et al. 2021; half-split pairs as in
/// Hugging Face's models): for i < h/2, with c, s = cos, sin of position · theta^(−2i/h),
///   (a_i, a_{i+h/2}) ← (a_i c − a_{i+h/2} s,  a_{i+h/2} c + a_i s).
/// With `inverse`, the rotation back: the gradient's.
struct Rope {
  static constexpr std::string_view kName = "rope";
  Tensor qkv;        // [N, (H + 2G) h], changed in place; values are left alone
  Tensor positions;  // [N] i32; rows at kPadding are left alone
  Tensor table;      // [P, 2, h/2] statistics: cosines, then sines, of positions 0 .. P−1
  Heads heads;
  bool inverse = false;
};

/// Causal attention within each sequence: token at position p of its sequence sees positions
/// max(0, p − window + 1) .. p of the same sequence.
///   out = softmax(scale · q kᵀ) v;  log_sum = log Σ exp(scale · q kᵀ)
struct Attention {
  static constexpr std::string_view kName = "attention";
  Tensor qkv;              // [N, (H + 2G) h]
  Tensor sequence_starts;  // [S+1] i32, from 0 to N
  Tensor out;              // [N, H h]
  Tensor log_sum;          // [N, H] statistics, or empty when no backward pass follows
  Heads heads;
  int64_t window = 0;  // 0: no limit
  double scale = 1;
  int64_t longest = 0;  // an upper bound of the sequences' lengths, known on the host
};

/// The gradient of Attention. With P = exp(scale · q kᵀ − log_sum), dP = dout vᵀ and
/// δ = Σ_h dout · out:  dS = P (dP − δ);  dq = scale · dS k;  dk = scale · dSᵀ q;  dv = Pᵀ dout,
/// dk and dv summed over the query heads that share them.
struct AttentionBackward {
  static constexpr std::string_view kName = "attention_backward";
  Tensor qkv;              // [N, (H + 2G) h]
  Tensor sequence_starts;  // [S+1] i32
  Tensor out;              // [N, H h]
  Tensor log_sum;          // [N, H]
  Tensor dout;             // [N, H h]
  Tensor dqkv;             // [N, (H + 2G) h], assigned
  Tensor delta;            // [N, H] statistics: room for δ, afterwards unspecified
  Heads heads;
  int64_t window = 0;
  double scale = 1;
  int64_t longest = 0;
};

/// Attention of new tokens over a cache that already holds them: token n sees positions
/// max(0, p − window + 1) .. p of sequence rows[n], where p = positions[n]. On `ref` and `cpu` a
/// row equals, bit for bit, the row that Attention computes for the same sequence when the cache
/// has the activations' type.
struct CachedAttention {
  static constexpr std::string_view kName = "cached_attention";
  Tensor qkv;        // [N, (H + 2G) h]
  Tensor positions;  // [N] i32, or kPadding
  Tensor rows;       // [N] i32: rows of the table; not read where the position is kPadding
  KvView cache;
  Tensor out;  // [N, H h]; zeros in padding rows
  Heads heads;
  /// Tokens 0 .. decode_rows − 1 are taken one by one; the others are runs of several tokens of a
  /// sequence. It decides how the work is divided, not what is computed.
  int64_t decode_rows = 0;
  int64_t window = 0;
  double scale = 1;
  /// Keys that all tokens see together, were there no window: for cost(). 0: not known to the host.
  int64_t seen_keys = 0;
};

void check(const Rope&);
void check(const Attention&);
void check(const AttentionBackward&);
void check(const CachedAttention&);
Cost cost(const Rope&);
Cost cost(const Attention&);
Cost cost(const AttentionBackward&);
Cost cost(const CachedAttention&);

/// Fills a host table for Rope: [positions, 2, h/2]. As Hugging Face computes it, frequencies and
/// angles are rounded to float before the cosine is taken, so that long contexts agree with it.
/// `frequencies` bf16 or f16 rounds the frequencies further, as casting a whole transformers model
/// to that type does to its buffer of them (model.half()); loading a 16-bit model does not.
void fill_rope_table(const Tensor& table, double theta, Dtype frequencies = Dtype::f32);

}  // namespace mixtral::ops
