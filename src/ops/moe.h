#pragma once

#include "ops/matmul.h"

namespace mixtral::ops {

// A sparse mixture of experts. Each of N tokens goes to k of E experts, which makes R = N·k rows,
// always exactly that many: no token is dropped. Rows are sorted by expert, and within an expert by
// token. `source[r]` is the assignment a = n·k + j that row r computes, and `slot[n, j]` is its
// inverse, the row of assignment (n, j); with both, every gather, scatter and gradient below reads
// what it needs and writes each output once, without atomics.

/// probabilities = softmax over all E logits; those of the k largest logits are chosen (ties to the
/// lower index, in descending order) and renormalised to sum to 1; then rows are sorted by expert.
/// Padding goes to no expert: its weights are 0, its expert and slot −1. As many rows, those from
/// offsets[E] on, are no expert's; their source is 0.
struct Route {
  static constexpr std::string_view kName = "route";
  Tensor logits;     // [N, E] statistics
  Tensor positions;  // [N] i32, or kPadding; or empty: no padding
  Tensor weights;    // [N, k] statistics
  Tensor expert;     // [N, k] i32
  Tensor slot;       // [N, k] i32
  Tensor source;     // [R] i32
  Tensor offsets;    // [E+1] i32: rows offsets[e] .. offsets[e+1] are expert e's
};

/// The gradient of Route, plus that of the router's own losses. With p = softmax(logits), w the k
/// renormalised weights, chosen set K, lse = log Σ exp(logits):
///   dlogits[e] = [e in K] · w_e · (dw_e − Σ_K w dw)
///              + p_e · (dprobability_e − Σ p · dprobability)  +  z_scale · 2 · lse · p_e
struct RouteBackward {
  static constexpr std::string_view kName = "route_backward";
  Tensor logits;        // [N, E] statistics
  Tensor weights;       // [N, k]
  Tensor expert;        // [N, k] i32
  Tensor dweights;      // [N, k]
  Tensor dprobability;  // [E]: the same for every token (see BalanceLoss), or empty
  Tensor dlogits;       // [N, E], assigned
  double z_scale = 0;
};

/// What a layer's router did with N tokens: load[e] = assignments to e / N (sums to k),
/// importance[e] = mean probability of e, z = mean of lse², entropy = mean of −Σ p log p. Padding
/// does not count; without any token all are 0.
struct RouterStatistics {
  static constexpr std::string_view kName = "router_statistics";
  Tensor logits;      // [N, E] statistics
  Tensor positions;   // [N] i32, or kPadding; or empty: no padding
  Tensor offsets;     // [E+1] i32
  Tensor load;        // [E] statistics
  Tensor importance;  // [E]
  Tensor z;           // [1]
  Tensor entropy;     // [1]
};

/// The load-balancing loss of a whole model (Fedus et al. 2021, "Switch Transformers", eq. 4-6,
/// with k experts a token) and the router z-loss (Zoph et al. 2022, "ST-MoE", eq. 5):
///   per layer:  aux = mean_l E · Σ_e load[l,e] · importance[l,e]
///   pooled:     aux = E · Σ_e mean_l(load)[e] · mean_l(importance)[e]      (transformers' formula)
///   z = mean_l z[l]
/// and dprobability[l,e] = d(coefficient · aux) / d(probability of e for one token of layer l).
struct BalanceLoss {
  static constexpr std::string_view kName = "balance_loss";
  Tensor load;          // [L, E] statistics
  Tensor importance;    // [L, E]
  Tensor z;             // [L]
  Tensor losses;        // [2]: aux, z; assigned
  Tensor dprobability;  // [L, E], assigned; or empty
  int64_t tokens = 0;   // N
  double coefficient = 0;
  bool pooled = false;
};

/// y[r] = x[source[r] / divisor]: each expert's rows side by side. With divisor k it is the forward
/// gather of tokens, and the gradient of CombineRows.
struct GatherRows {
  static constexpr std::string_view kName = "gather_rows";
  Tensor x;       // [N, D]
  Tensor source;  // [R] i32
  Tensor y;       // [R, D]
  int64_t divisor = 1;
};

/// out[n] = Σ_j y[slot[n, j]]  (+ residual[n]): tokens take back the sum of their experts' rows,
/// padding (slots −1) nothing.
/// Also the gradient of GatherRows. The terms are added in order of j, the residual last.
struct CombineRows {
  static constexpr std::string_view kName = "combine_rows";
  Tensor y;         // [R, D]
  Tensor slot;      // [N, k] i32
  Tensor residual;  // [N, D] or empty; may alias out
  Tensor out;       // [N, D]
};

/// h[r] = w · silu(gate[r]) · up[r], where gate and up are the halves of a row of gate_up, and w is
/// weights[source[r]]: the router's weight is applied here, to the narrow side of the expert, so
/// that combining is a plain sum and the gradient of w needs no output of w2.
struct SwiGlu {
  static constexpr std::string_view kName = "swiglu";
  Tensor gate_up;  // [R, 2F]
  Tensor weights;  // [N, k] statistics
  Tensor source;   // [R] i32
  Tensor h;        // [R, F]
};

/// With s = sigmoid(gate), u = silu(gate) · up:  dweights[source[r]] = Σ_f dh · u (assigned);
/// d_gate = w · dh · up · s (1 + gate (1 − s));  d_up = w · dh · silu(gate).
struct SwiGluBackward {
  static constexpr std::string_view kName = "swiglu_backward";
  Tensor gate_up;    // [R, 2F]
  Tensor weights;    // [N, k] statistics
  Tensor source;     // [R] i32
  Tensor dh;         // [R, F]
  Tensor d_gate_up;  // [R, 2F], assigned; may alias gate_up
  Tensor dweights;   // [N, k] statistics, assigned
  Tensor h;          // [R, F]: what SwiGlu made of gate_up, assigned again; or empty; may alias dh
};

/// An expert's first product and what follows it: gate_up = x · weightᵀ, as GroupedMatmul, and h,
/// as SwiGlu. One op, so that a device can do the second on its way to memory.
struct GroupedMatmulSwiGlu {
  static constexpr std::string_view kName = "grouped_matmul_swiglu";
  Tensor x;                  // [R, I]
  Weight weight;             // [G, 2F, I]
  Tensor offsets;            // [G+1] i32
  Tensor weights;            // [N, k] statistics
  Tensor source;             // [R] i32
  Tensor gate_up;            // [R, 2F]
  Tensor h;                  // [R, F]
  bool keep_gate_up = true;  // else gate_up is only room, and may hold anything afterwards
  Operands operands = Operands::exact;

  GroupedMatmul product() const;
  SwiGlu activation() const;
};

void check(const Route&);
void check(const RouteBackward&);
void check(const RouterStatistics&);
void check(const BalanceLoss&);
void check(const GatherRows&);
void check(const CombineRows&);
void check(const SwiGlu&);
void check(const SwiGluBackward&);
void check(const GroupedMatmulSwiGlu&);
Cost cost(const Route&);
Cost cost(const RouteBackward&);
Cost cost(const RouterStatistics&);
Cost cost(const BalanceLoss&);
Cost cost(const GatherRows&);
Cost cost(const CombineRows&);
Cost cost(const SwiGlu&);
Cost cost(const SwiGluBackward&);
Cost cost(const GroupedMatmulSwiGlu&);

}  // namespace mixtral::ops
