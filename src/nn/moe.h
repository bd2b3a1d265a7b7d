#pragma once

#include <memory>

#include "nn/expert_store.h"
#include "nn/parameter.h"
#include "nn/projection.h"

namespace mixtral::nn {

/// What a layer's router did, per ops::RouterStatistics; empty tensors where nobody asks.
struct RouterReport {
  Tensor load;        // [E]
  Tensor importance;  // [E]
  Tensor z;           // [1]
  Tensor entropy;     // [1]
  // Each token's own, in inference only; both, or empty.
  Tensor logits;  // [N, E] statistics
  Tensor expert;  // [N, k] i32, the heaviest first
};

/// The gradient that the router receives from its own losses (ops::RouteBackward).
struct RouterGradient {
  Tensor dprobability;  // [E], or empty
  double z_scale = 0;
};

/// A sparse mixture of SwiGLU experts:
///   out = residual + Σ_{e in top-k} w_e · (silu(x W1ᵀ) · (x W3ᵀ)) W2ᵀ
class MixtureOfExperts {
 public:
  struct Saved {
    Tensor logits;   // [N, E] statistics
    Tensor weights;  // [N, k] statistics
    Tensor expert;   // [N, k] i32
    Tensor slot;     // [N, k] i32
    Tensor source;   // [R] i32
    Tensor offsets;  // [E+1] i32
    Tensor gate_up;  // [R, 2F]
  };

  /// Where experts are streamed: the layer after this one, whose router says early, by this layer's
  /// residual, which experts it is likely to need (Eliseev and Mazur 2023, "Fast inference of
  /// mixture-of-experts language models with offloading"). Nothing where `router` is null.
  struct Next {
    int64_t layer = 0;
    const Projection* router = nullptr;
    const Parameter* norm = nullptr;  // of its experts' input
    double eps = 0;
  };

  /// What this layer is to say of the experts that it needs, where they are streamed.
  struct Streaming {
    bool on = false;
    int64_t layer = 0;
    Next next;
    ExpertStore* store = nullptr;  // that is told; null in a plan
  };

  int64_t experts_per_token = 2;  // k
  Streaming streaming;
  std::unique_ptr<Projection> router;   // [E, D]
  std::unique_ptr<Projection> gate_up;  // [E, 2F, D]: w1's rows, then w3's
  std::unique_ptr<Projection> down;     // [E, D, F]

  /// out [N, D] from the normed x [N, D]; out may alias residual. Of a batch over a cache, rows
  /// whose position is ops::kPadding go to no expert.
  void forward(Context& ctx, const Tensor& x, const Sequences& sequences, const Tensor& residual,
               const Tensor& out, Saved* saved, const RouterReport* report) const;
  /// dx [N, D] is assigned. `dout` is also the residual's gradient, which the caller keeps.
  void backward(Context& ctx, const Tensor& dout, const Tensor& x, const Sequences& sequences,
                const Saved& saved, const RouterGradient& losses, const Tensor& dx) const;

  /// Room for what backward needs.
  Saved allocate_saved(Context& ctx, int64_t tokens) const;
  void for_each_parameter(const ParameterVisitor& visit);

 private:
  void look_ahead(Context& ctx, const Tensor& residual, const Tensor& positions,
                  const Tensor& offsets) const;
  void announce(Context& ctx, const Tensor& offsets) const;
};

}  // namespace mixtral::nn
