#pragma once

#include "nn/attention.h"
#include "nn/moe.h"

namespace mixtral {

/// One layer of the transformer:
///   sum = x + attention(norm(x));   out = sum + experts(norm(sum))
struct Block {
  struct Saved {
    Tensor x;           // [N, D]: the block's input, owned by whoever made it
    Tensor rstd, norm;  // [N], [N, D]: of the attention's input
    nn::Attention::Saved attention;
    Tensor sum;                 // [N, D]
    Tensor sum_rstd, sum_norm;  // [N], [N, D]: of the experts' input
    nn::MixtureOfExperts::Saved experts;
  };

  nn::Parameter attention_norm;  // [D]
  nn::Attention attention;
  nn::Parameter experts_norm;  // [D]
  nn::MixtureOfExperts experts;
  double eps = 1e-5;

  /// out [N, D] from x [N, D]. `saved` comes from allocate_saved; null is inference.
  void forward(Context& ctx, const Tensor& x, const nn::Sequences& sequences,
               const ops::KvView& cache, const Tensor& out, Saved* saved,
               const nn::RouterReport* report) const;
  /// The same over a cache, in inference, where only some tokens are wanted: out [n, D].
  void forward_last(Context& ctx, const Tensor& x, const nn::Sequences& sequences,
                    const ops::KvView& cache, const nn::LastTokens& last, const Tensor& out) const;
  /// d [N, D]: the gradient of out, replaced by that of x.
  void backward(Context& ctx, const Tensor& d, const nn::Sequences& sequences, const Saved& saved,
                const nn::RouterGradient& losses) const;

  Saved allocate_saved(Context& ctx, int64_t tokens) const;
  void for_each_parameter(const nn::ParameterVisitor& visit);
};

}  // namespace mixtral
