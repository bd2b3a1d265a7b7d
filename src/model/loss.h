#pragma once

#include <functional>

#include "model/mixtral.h"

namespace mixtral {

/// What training minimises: the mean cross-entropy of the labels, plus the router's own losses.
struct Objective {
  /// The load-balancing loss: none, each layer's own averaged over layers, or transformers'
  /// formula, which pools the layers before it multiplies (ops::BalanceLoss).
  enum class Balance { off, per_layer, hf };

  Balance balance = Balance::per_layer;
  double aux_coefficient = 0.02;
  double z_coefficient = 0;

  bool uses_router() const { return balance != Balance::off || z_coefficient > 0; }
  /// cross_entropy + aux_coefficient · aux + z_coefficient · z
  double total(double cross_entropy, double aux, double z) const {
    return cross_entropy + (balance == Balance::off ? 0 : aux_coefficient * aux) +
           z_coefficient * z;
  }
};

/// The memory that the logits of one slice and their gradient take: what the loss of N tokens needs
/// at a time.
int64_t logits_slice_bytes(const Backend& backend, int64_t tokens, int64_t vocabulary,
                           Dtype activations);

/// Where the losses of one or several batches add up, on the device.
struct LossTotals {
  Tensor cross_entropy;  // [1] f64: Σ over labels
  Tensor router;         // [2] statistics: aux and z, Σ over batches of share · value

  static LossTotals allocate(Context& ctx);  // zeros, in the arena
};

/// The same on the host.
struct LossValues {
  double cross_entropy = 0;  // mean over labels
  double aux = 0, z = 0;     // means over batches
  double total = 0;
};
/// Waits for the device and reads the totals of batches with `labels` labels altogether.
LossValues read(Context& ctx, const LossTotals& totals, const Objective& objective, int64_t labels);

/// One batch's part of an optimizer step: runs forward and backward and adds to the parameters'
/// gradients those of
///   label_scale · Σ_labels cross-entropy  +  share · (aux and z terms of this batch).
/// label_scale [1] (statistics) is 1 / labels of the whole step; share is 1 / batches of the step.
/// The logits are made and consumed in slices: never [N, V] at once. `reports`, if given, receives
/// the routers' figures.
struct GradientOptions {
  Tensor label_scale;  // [1]
  /// In its place, where the scales follow from the losses: given each token's loss [N]
  /// (statistics; 0 where there is no label), returns each token's scale [N].
  std::function<Tensor(const Tensor& token_losses)> weigh;
  double share = 1;
  Recompute recompute;
};
void accumulate_gradients(Context& ctx, const Mixtral& model, const Batch& batch,
                          const Objective& objective, const GradientOptions& options,
                          const LossTotals& totals, const Mixtral::RouterReports* reports);

/// The losses of one batch, without gradients. `token_losses` [N], if given, receives each token's.
void accumulate_losses(Context& ctx, const Mixtral& model, const Batch& batch,
                       const Objective& objective, double share, const LossTotals& totals,
                       const Mixtral::RouterReports* reports, const Tensor& token_losses = {});

}  // namespace mixtral
