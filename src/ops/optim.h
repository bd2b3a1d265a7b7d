#pragma once

#include <bit>

#include "ops/common.h"
#include "tensor/dtype.h"

namespace mixtral::ops {

/// sum[0] (+)= Σ x², in f64 and in a fixed order.
struct SquaredNorm {
  static constexpr std::string_view kName = "squared_norm";
  Tensor x;    // any shape, f64 or f32
  Tensor sum;  // [1] f64
  bool accumulate = false;
};

/// A value rounded to bf16 stochastically: up with the probability of the part that is cut off.
/// Uses the low 16 bits of `word`. Infinities and NaN convert as usual.
inline bf16 round_stochastically(float value, uint32_t word) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bf16(value);
  return bf16(std::bit_cast<float>((bits + (word & 0xffffu)) & 0xffff0000u));
}

/// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), as PyTorch computes it:
///   g = grad · min(1, clip / (sqrt(squared_norm) + 1e-6))            (clip = 0: no clipping)
///   value −= lr · weight_decay · value
///   m = β1 m + (1 − β1) g;   v = β2 v + (1 − β2) g²
///   value −= lr · (m / (1 − β1^t)) / (sqrt(v / (1 − β2^t)) + eps)
/// Nothing changes when squared_norm is not finite: a bad step is skipped without asking the host.
/// m and v may be bf16; they are then rounded to f32 and from there stochastically, with words 0
/// (for m) and 1 (for v) of philox(seed, t, element); the update uses them as they were before.
struct AdamW {
  static constexpr std::string_view kName = "adamw";
  Tensor value;         // [n] statistics type: the parameters, or their master copy
  Tensor grad;          // [n] statistics type
  Tensor m;             // [n] value's type, or bf16
  Tensor v;             // [n] as m
  Tensor model;         // [n] bf16 copy of value to refresh, or empty
  Tensor schedule;      // [4] f64: lr, 1 − β1^t, 1 − β2^t, t
  Tensor squared_norm;  // [1] f64: of all gradients together
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0;
  double clip = 0;
  uint64_t seed = 0;
};

void check(const SquaredNorm&);
void check(const AdamW&);
Cost cost(const SquaredNorm&);
Cost cost(const AdamW&);

}  // namespace mixtral::ops
