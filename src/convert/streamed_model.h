#pragma once

#include <functional>
#include <vector>

#include "convert/part_reader.h"
#include "model/batch.h"

namespace mixtral {

/// A model whose weights stay in their files: its forward pass reads one matrix at a time, in f32.
/// For a pass over a text with a model that is larger than the memory. An expert that no token
/// chooses is not read. The weights are those of the files, decoded and not rounded further.
class StreamedModel {
 public:
  /// Is told what matrices are multiplied by, rows [n, columns]: queries (and so keys and values),
  /// attention's output, and w1 (and so w3) of each expert that tokens reach; of the latter with
  /// the router's weights [n, 1] of these rows.
  using Inputs = std::function<void(const TensorId&, const Tensor& x, const Tensor& weights)>;
  /// Are told what a layer's router does, where they are there.
  struct Listener {
    /// What layer `layer`'s router sees, [N, D].
    std::function<void(Context&, int64_t layer, const Tensor& x)> layer;
    /// What an expert gives for the tokens that chose it, times the router's weights: [n, D].
    std::function<void(int64_t layer, int64_t expert, const Tensor& y)> expert;
  };

  /// `backend` computes in ordinary memory (cpu or ref); both must outlive this.
  StreamedModel(Backend& backend, PartReader& reader);

  const ModelConfig& config() const { return reader_.config(); }
  /// Hidden states [N, D] after the final norm, in the context's arena.
  Tensor hidden(Context& ctx, const Batch& batch, const Listener& listener = {});
  /// What one expert makes of any rows x [n, D]: [n, D], in the context's arena.
  Tensor expert_output(Context& ctx, int64_t layer, int64_t expert, const Tensor& x);
  /// Logits [n, V] of hidden states [n, D], in the context's arena.
  Tensor logits(Context& ctx, const Tensor& hidden);

  // The steps of hidden(), on x [N, D]:
  void embed(Context& ctx, const Batch& batch, const Tensor& x);
  void layer(Context& ctx, int64_t layer, const Batch& batch, const Tensor& x,
             const Inputs& inputs = {}, const Listener& listener = {});
  void final_norm(Context& ctx, const Tensor& x, const Tensor& y);
  /// What w2 of an expert is multiplied by, [n, F], for rows x [n, D] with the router's weights
  /// [n, 1]; in the context's arena.
  Tensor expert_hidden(Context& ctx, int64_t layer, int64_t expert, const Tensor& x,
                       const Tensor& weights);
  /// y[r, y_begin + o] = x · weightᵀ.
  void multiply(Context& ctx, const TensorId& id, const Tensor& x, const Tensor& y,
                int64_t y_begin = 0);

 private:
  void experts(Context& ctx, int64_t layer, const Tensor& norm, const Tensor& x,
               const Inputs& inputs, const Listener& listener);
  Tensor rope_table(Context& ctx, int64_t positions) const;

  PartReader& reader_;
};

/// Logits [N, V] of one sequence of tokens, row by row.
std::vector<float> streamed_logits(Backend& backend, const TensorSource& source,
                                   const ModelConfig& config, const std::vector<int32_t>& tokens);

}  // namespace mixtral
