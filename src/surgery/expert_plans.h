#pragma once

#include <cstdint>
#include <vector>

#include "convert/model_edit.h"
#include "surgery/expert_statistics.h"

namespace mixtral {

// Each says how a model is made of others' experts. The sources must outlive the edit. A count that
// cannot be is an AdvisedUsageError about its setting.

/// Of the numbers of copied experts: ModelEdit::noise, share and seed.
struct CopyNoise {
  double deviation = 0;
  double share = 1;
  uint64_t seed = 1;
};

/// A dense model's MLP as each of `experts` experts (Komatsuzaki et al. 2022, "Sparse Upcycling").
/// The first is the MLP as it was; the others have the noise. Routers are drawn (draw_router). The
/// weights of the chosen experts sum to 1, so without noise the model computes what the dense one
/// does. Throws Error where the source is no dense model.
ModelEdit plan_upcycle(const ModelSource& dense, int64_t experts, int64_t per_token,
                       const CopyNoise& noise);

/// Throws AdvisedUsageError about `setting` unless a model can be left with so many experts. What
/// the plans below refuse, before statistics are gathered for them.
void require_fewer_experts(const ModelConfig& config, const char* setting, int64_t experts);

enum class PruneBy {
  load,  // tokens that chose the expert
  reap,  // LayerStatistics::saliency
};
/// In each layer, the `keep` experts of highest score, in their order, with their routers' rows. As
/// many a token as before, where so many are left.
ModelEdit plan_prune(const ModelSource& source, const ExpertStatistics& statistics, int64_t keep,
                     PruneBy by);

/// In each layer, `into` groups of experts whose mean outputs are close; each becomes the mean of
/// its members, weighted by their loads, and so do their routers' rows (Chen et al. 2024,
/// "Retraining-free merging of sparse MoE via hierarchical clustering", arXiv 2410.08589, which
/// keeps every row and so several for one expert: a Mixtral has one). Needs mean outputs.
ModelEdit plan_merge(const ModelSource& source, const ExpertStatistics& statistics, int64_t into);

/// `count` more experts: copies of the experts `from` in turn (empty: of all) with noise, on their
/// routers' rows, too.
ModelEdit plan_add(const ModelSource& source, int64_t count, const std::vector<int64_t>& from,
                   const CopyNoise& noise);

struct GraftOptions {
  int64_t per_token = 2;
  uint64_t seed = 1;  // of routers that are drawn
  /// For each model, what the base's routers see of its prompts (mean_router_inputs). Empty: there
  /// are no prompts.
  std::vector<std::vector<std::vector<double>>> prompts;
};
/// The experts of all models in one, with everything else from the base: of a dense model its MLP,
/// of a Mixtral each expert. Routers: with prompts, which take dense models, a row is the direction
/// of its model's prompts (mergekit-moe's gate mode "hidden", but with the router's own input);
/// without, Mixtrals bring their rows, and for dense models they are drawn. Throws Error where the
/// models' shapes differ from the base's.
ModelEdit plan_graft(const ModelSource& base, const std::vector<const ModelSource*>& models,
                     const GraftOptions& options);

/// A router [E, D]: normal with a deviation of 0.02, as the code of Sparse Upcycling draws it.
std::vector<double> draw_router(const ModelConfig& config, int64_t layer, uint64_t seed);

}  // namespace mixtral
