#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/train_data.h"
#include "cli/train_options.h"
#include "train/training_plan.h"

namespace mixtral {

/// Settles --context where it is not given: the model's positions, which cost nothing beyond the
/// longest record (planned_context), or fewer where documents are packed.
void choose_context(TrainOptions& options, const ModelConfig& config);
/// Tokens of the longest row that a step can have.
int64_t planned_context(const TrainOptions& options, const TrainingData& data);
/// How --resume and --overwrite want the run's directory.
RunDirectory::Open open_mode(const TrainOptions& options);

/// What training on a CPU takes beside the plan, whatever the model: the kernels' code and scratch,
/// plots, and the stacks and heaps of the program's threads.
int64_t fixed_training_bytes();

/// What a run will need.
struct TrainingMemory {
  int64_t arena = 0;    // activations of a step
  int64_t planned = 0;  // everything
};
/// Throws Error with an itemised table when the device has not that much.
TrainingMemory require_training_memory(const Backend& backend, const TrainingShape& shape);

/// What a command that trains has opened, before training begins.
struct TrainingSetup {
  std::string_view command;  // its name, for how to continue
  Backend& backend;
  Context& ctx;
  Mixtral& model;
  Criterion& criterion;
  TrainedModel& trained;
  const Tokenizer* tokenizer = nullptr;  // may be null
  const TrainingData& data;
  CorpusSource& train;
  RunDirectory& run;
  std::string config_text;  // config.yaml without what run_info_text adds
  /// The directories of the models that flags name, by flag; empty where there is none.
  std::vector<std::pair<std::string, std::filesystem::path>> models = {};
  std::string subject;  // what is trained, in words
  int64_t planned_bytes = 0;
  std::string_view result = "model";  // what a checkpoint holds
  bool perplexity = true;             // whether e to the loss means something
};

/// Trains, showing progress on stderr, and prints the results and a sample on stdout. Throws
/// ExitStatus when a signal ended the run.
void train_and_report(const TrainOptions& options, const TrainSettings& settings,
                      const TrainingSetup& setup);

}  // namespace mixtral
