#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "cli/common.h"
#include "cli/run_config.h"
#include "data/batches.h"
#include "model/loss.h"
#include "train/defaults.h"
#include "train/trainer.h"

namespace mixtral {

/// What --recompute and --keep-layers say together. Throws UsageError for the second alone.
Recompute recompute_rule(bool recompute, int64_t keep_layers);

/// What --graph says about steps on a backend: auto is on where the device works on its own.
bool records_steps(std::string_view graph, const Backend& backend);
/// The help text of --graph.
inline constexpr const char* kGraphHelp =
    "Record steps whose shapes repeat and replay each as one piece (a CUDA graph): the same bits, "
    "less work for the host. auto: on for a GPU";

/// The flags of every command that trains, under the names they have. What is optional has a
/// default that depends on the model or on other flags; resolve() fills it in.
struct TrainOptions {
  CommonOptions common;

  // Data
  std::string data, tokenizer;
  std::optional<int64_t> context;
  int64_t batch_size = defaults::kBatchRows;
  std::string pack = "on", shuffle = "on", windows = "documents";
  bool mask_prompt = false;
  std::string response_marker = "###Assistant:";
  std::optional<std::string> chat_template;  // only where a flag or file names it
  double validation_fraction = 0.1;
  bool token_cache = false;
  bool pairs = false;  // the data are preference pairs, one a row whatever `pack` says

  // Optimization
  int64_t default_iterations = defaults::kIterations;
  std::optional<int64_t> iterations;
  std::optional<double> epochs;
  std::optional<double> lr, min_lr;
  std::string schedule = "wsd";
  std::optional<int64_t> warmup;
  double decay_fraction = defaults::kDecayShare;
  int64_t accumulation = 1;
  double beta1 = defaults::kBeta1, beta2 = defaults::kBeta2, adam_eps = defaults::kAdamEps;
  double weight_decay = defaults::kWeightDecay, grad_clip = defaults::kGradClip;
  std::string optimizer_state = "fp32";
  bool recompute = false;
  int64_t keep_layers = 0;
  std::string aux_loss = "per-layer";
  std::optional<double> aux_coefficient;
  double z_coefficient = 0;

  // The run
  std::string out, resume, config_path;
  bool overwrite = false, dump_config = false, resuming = false, tensorboard = false;
  int64_t log_every = 10, eval_batches = 0, keep_last = 2, patience = 0, max_skipped = 10;
  std::optional<int64_t> eval_every, save_every;
  std::string keep_best = "on", graph = "auto";
  std::string sample_prompt = "Once upon a time";
  int64_t sample_tokens = 200;

  void add_data(RunConfig& config_file);
  void add_optimization(RunConfig& config_file);
  void add_run(cli::App& app, RunConfig& config_file);
  /// --device and the like: what CommonOptions has.
  void add_common(cli::App& app, RunConfig& config_file);

  /// Reads --config, or the run's own configuration on --resume. Returns what is to be said about
  /// flags that differ from the run's. Throws UsageError, also for flags that say nothing together.
  std::vector<std::string> read_config(cli::App& app, RunConfig& config_file);

  /// Fills in what depends on the model's width (learning rate) and on the number of steps, from
  /// `rows_per_epoch` rows of data where --epochs is given.
  void resolve(double default_lr, int64_t rows_per_epoch);

  BatchOptions batch_options(Split split) const;
  EncodeOptions encode_options(int64_t vocabulary) const;
  Objective objective(double default_coefficient) const;
  Recompute recompute_rule() const { return mixtral::recompute_rule(recompute, keep_layers); }
  TrainSettings train_settings() const;  // after resolve()
};

}  // namespace mixtral
