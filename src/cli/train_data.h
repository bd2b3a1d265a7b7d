#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/train_options.h"
#include "train/corpus_source.h"

namespace mixtral {

/// The splits that a run trains and is judged on.
struct TrainingData {
  Corpus train;
  std::optional<Corpus> validation, test;
  std::map<std::string, std::string> hashes;  // by file name: "xxh3 in hex (bytes)"

  int64_t longest() const;  // tokens of the longest record of any split
};

/// Reads all that --data has, telling stderr what it found. Throws Error listing every bad line.
TrainingData load_training_data(const TrainOptions& options, const Tokenizer* tokenizer,
                                int64_t vocabulary);

/// Throws Error when the validation or the test split has no label within --context. The run would
/// otherwise fail after training. (Batches refuse training data of that kind.)
void require_labels(const TrainOptions& options, const TrainingData& data);

/// Throws Error unless the files' contents are those that the run recorded in its config.yaml.
void require_same_data(const TrainingData& data, const std::filesystem::path& config_yaml);

/// The tokenizer for --data where nobody named one: bytes for plain text, else none.
std::unique_ptr<Tokenizer> default_tokenizer(const TrainOptions& options);

/// The run_info part of a run's config.yaml: versions, device, data, and the directories of the
/// models that flags name.
std::string run_info_text(const Backend& backend, const TrainingData& data,
                          const Tokenizer* tokenizer,
                          const std::vector<std::pair<std::string, std::filesystem::path>>& models);

}  // namespace mixtral
