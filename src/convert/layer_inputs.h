#pragma once

#include <vector>

#include "convert/streamed_model.h"

namespace mixtral {

/// What the matrices of a model are multiplied by, on a text. The model runs from its files, as it
/// is there, no further than the layer that is asked for; one layer's activations are in memory.
/// Asking in the order of the layers costs one forward pass, going back another.
class LayerInputs {
 public:
  /// Others' rows that an expert is shown beside its own count as so many tokens.
  static constexpr int64_t kSharedTokens = 64;

  /// `backend` computes in ordinary memory. It and the source must outlive this.
  LayerInputs(Backend& backend, const TensorSource& source, const ModelConfig& config,
              const HostBatch& text);

  /// Whether rows() can be asked: for the projections of attention and experts, and the head.
  static bool has(TensorKind kind);
  /// Rows [n, columns], in the context's arena. Of an expert: those of the tokens that choose it,
  /// and a sample of the layer's others, scaled so that their squares count as kSharedTokens
  /// tokens. So a rarely chosen expert is rounded for its layer's tokens, and one that no token
  /// chose for these alone.
  Tensor rows(const TensorId& id);
  /// Tokens of the text that chose an expert of the layer asked for last.
  int64_t tokens_of(int64_t expert) const;
  /// The residual stream [N, D] behind the layer asked for last.
  const Tensor& residual() const { return x_; }

  /// For work on the rows; rows() gives back all that was taken from its arena.
  Context& context() { return ctx_; }
  int64_t tokens() const { return batch_.size(); }

 private:
  void restart();
  void run_to(int64_t layer);
  void note(const TensorId& id, const Tensor& x, const Tensor& weights);
  Tensor expert_rows(const TensorId& id);

  PartReader reader_;
  StreamedModel model_;
  Arena arena_;
  Context ctx_;
  Batch batch_;
  Tensor x_;                     // [N, D] after layer_
  Tensor norm_, attended_;       // [N, D] and [N, H h]: of attention's projections
  Tensor expert_in_, weights_;   // [N k, D] and [N k, 1]: experts one after another
  std::vector<int64_t> starts_;  // of each expert's rows
  int64_t layer_ = -1;           // whose inputs are at hand; -1: none's
  Arena::Mark mark_;             // behind all these
};

}  // namespace mixtral
