#pragma once

#include <memory>

#include "nn/projection.h"

namespace mixtral::nn {

/// Grouped-query attention with rotary positions:
///   q, k, v = x Wqkvᵀ;  out = softmax(scale · rope(q) rope(k)ᵀ, causal) v Woᵀ
class Attention {
 public:
  struct Saved {
    Tensor qkv;      // [N, (H + 2G) h], rotated
    Tensor out;      // [N, H h], before the output projection
    Tensor log_sum;  // [N, H]
  };

  ops::Heads heads;
  int64_t window = 0;
  Tensor rope_table;                   // [P, 2, h/2]
  std::unique_ptr<Projection> qkv;     // [(H + 2G) h, D]
  std::unique_ptr<Projection> output;  // [D, H h]

  /// y [N, D] from the normed x [N, D]. With a cache (an empty view is none), new tokens are
  /// appended to it and see what it holds. With `last`, in inference only, y [n, D] is of these
  /// tokens alone.
  void forward(Context& ctx, const Tensor& x, const Sequences& sequences, const ops::KvView& cache,
               const Tensor& y, Saved* saved, const LastTokens* last = nullptr) const;
  /// dx [N, D] is assigned.
  void backward(Context& ctx, const Tensor& dy, const Tensor& x, const Sequences& sequences,
                const Saved& saved, const Tensor& dx) const;

  void for_each_parameter(const ParameterVisitor& visit);
};

}  // namespace mixtral::nn
