#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/common.h"
#include "data/batches.h"
#include "data/corpus.h"
#include "model/adapter.h"
#include "model/loss.h"
#include "train/training_plan.h"

namespace mixtral {

/// The flags of commands that run a model over data, and what they open.
struct ScoringOptions {
  CommonOptions common;
  std::string model, adapter, tokenizer, data, split = "val", aux_loss = "per-layer";
  std::string pack, shuffle = "off";
  std::string chat_template;  // of {"messages"}; empty: the model's own
  int64_t batch_size = 8, context = 0;
  double aux_coefficient = -1, z_coefficient = 0;

  void add_to(cli::App& command, const std::string& default_pack);
  Objective objective(const ModelConfig& config) const;
};

/// The file that --data and --split name. Throws Error when there is none.
std::filesystem::path scored_file(const ScoringOptions& options);

struct Scoring {
  std::shared_ptr<const Tokenizer> tokenizer;  // may be null
  Corpus corpus;
  OpenedModel open;
  BatchOptions batches;
};

/// What is done with the batches, for which there must be memory.
struct ScoringPass {
  /// gradients: the model's parameters have them, or the adapter's alone where there is one; it is
  /// the first batch's that are computed.
  Pass pass = Pass::losses;
  Recompute recompute;
  /// gradients of preference pairs, by a reference of its own or the adapter's base.
  std::optional<PreferenceSettings> preference;
  bool reference_model = false;
};

/// Opens device, model, adapter and data. Throws Error, before anything is allocated, where a batch
/// would not fit, and UsageError.
Scoring open_scoring(const ScoringOptions& options, const ScoringPass& pass);
/// The same where the names have been resolved already.
Scoring open_scoring(const ScoringOptions& options, const ModelSource& source,
                     const ScoringPass& pass);

}  // namespace mixtral
