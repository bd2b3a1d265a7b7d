#pragma once

#include "ops/common.h"

namespace mixtral::ops {

/// How a row of packed queries, keys and values is laid out: H query heads, then G key heads, then
/// G value heads, each h wide. Query head i uses key and value head i / (H / G).
struct Heads {
  int query = 0;  // H
  int kv = 0;     // G, divides H
  int width = 0;  // h, even

  constexpr int64_t columns() const { return int64_t{query + 2 * kv} * width; }
};

/// Rotary position embedding of queries and keys, in place (Su et al. 2021; half-split pairs as in
/// Hugging Face's models): for i < h/2, with c, s = cos, sin of position · theta^(−2i/h),
///   (a_i, a_{i+h/2}) ← (a_i c − a_{i+h/2} s,  a_{i+h/2} c + a_i s).
/// With `inverse`, the rotation back: the gradient's.
struct Rope {
  static constexpr std::string_view kName = "rope";
  Tensor qkv;        // [N, (H + 2G) h], changed in place; values are left alone
  Tensor positions;  // [N] i32
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

/// Writes the keys and values of new tokens into a cache: token n, at position p of the sequence in
/// cache slot s, goes to index p mod C of that slot.
struct CacheAppend {
  static constexpr std::string_view kName = "cache_append";
  Tensor qkv;        // [N, (H + 2G) h], keys already rotated
  Tensor positions;  // [N] i32
  Tensor slots;      // [N] i32
  Tensor keys;       // [slots, C, G, h] f64, f32, bf16 or f16
  Tensor values;     // [slots, C, G, h]
  Heads heads;
};

/// Attention of new tokens over a cache that already holds them: token n sees positions
/// max(0, p − window + 1) .. p of its slot. On `ref` and `cpu` a row equals, bit for bit, the row
/// that Attention computes for the same sequence when the cache has the activations' type.
struct CachedAttention {
  static constexpr std::string_view kName = "cached_attention";
  Tensor qkv;        // [N, (H + 2G) h]
  Tensor positions;  // [N] i32
  Tensor slots;      // [N] i32
  Tensor keys;       // [slots, C, G, h]
  Tensor values;     // [slots, C, G, h]
  Tensor out;        // [N, H h]
  Heads heads;
  int64_t window = 0;
  double scale = 1;
};

void check(const Rope&);
void check(const Attention&);
void check(const AttentionBackward&);
void check(const CacheAppend&);
void check(const CachedAttention&);
Cost cost(const Rope&);
Cost cost(const Attention&);
Cost cost(const AttentionBackward&);
Cost cost(const CacheAppend&);
Cost cost(const CachedAttention&);

/// Fills a host table for Rope: [positions, 2, h/2]. As Hugging Face computes it, frequencies and
/// angles are rounded to float before the cosine is taken, so that long contexts agree with it.
/// `frequencies` bf16 or f16 rounds the frequencies further, as casting a whole transformers model
/// to that type does to its buffer of them (model.half()); loading a 16-bit model does not.
void fill_rope_table(const Tensor& table, double theta, Dtype frequencies = Dtype::f32);

}  // namespace mixtral::ops
