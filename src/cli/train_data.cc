#include "cli/train_data.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/data_splits.h"
#include "cli/version.h"
#include "io/checksum.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

std::string hash_text(const FileChecksum& sum) {
  return fmt::format("{} ({} bytes)", sum.hex(), sum.bytes);
}

std::string describe(Split split, const Corpus& corpus) {
  const bool pairs = corpus.is_paired();
  return fmt::format("{}: {} {}, {} tokens", split_name(split),
                     pairs ? corpus.documents() / 2 : corpus.documents(),
                     pairs ? "pairs" : "records", corpus.tokens());
}

}  // namespace

int64_t TrainingData::longest() const {
  int64_t most = train.counts().longest;
  for (const auto* split : {&validation, &test})
    if (*split) most = std::max(most, (*split)->counts().longest);
  return most;
}

TrainingData load_training_data(const TrainOptions& options, const Tokenizer* tokenizer,
                                int64_t vocabulary) {
  const DataSplits splits({.data = options.data,
                           .encode = options.encode_options(vocabulary),
                           .validation_fraction = options.validation_fraction,
                           .token_cache = options.token_cache,
                           .threads = options.common.threads},
                          tokenizer);
  splits.file(Split::train);  // there must be one
  TrainingData data;
  const DataFiles files = DataFiles::find(options.data);
  std::string found;
  for (const Split split : kSplits) {
    if (!splits.has(split)) continue;
    Corpus corpus = splits.load(split);
    found += fmt::format("{}{}", found.empty() ? "" : "; ", describe(split, corpus));
    for (const fs::path& file : splits.files(split)) {
      const std::string name = files.texts.empty() ? file.filename().string()
                                                   : fs::relative(file, options.data).string();
      data.hashes[name] = hash_text(checksum_file(file));
    }
    if (split == Split::train)
      data.train = std::move(corpus);
    else
      (split == Split::val ? data.validation : data.test) = std::move(corpus);
  }
  const std::string kept = splits.validation_text();
  if (!kept.empty()) found += fmt::format(" ({}; --val-fraction changes it)", kept);
  say(options.common, found);
  return data;
}

void require_labels(const TrainOptions& options, const TrainingData& data) {
  if (data.validation) Batches(*data.validation, options.batch_options(Split::val));
  if (data.test) Batches(*data.test, options.batch_options(Split::test));
}

void require_same_data(const TrainingData& data, const fs::path& config_yaml) {
  const auto recorded = read_run_info(config_yaml, "data");
  for (const auto& [file, hash] : data.hashes) {
    const auto before = recorded.find(file);
    if (before == recorded.end() || before->second != hash)
      throw Error(fmt::format(
          "{} is not the data that the run was trained on ({} now, {} then), so the run cannot "
          "continue on it; give --data the former files, or start a new run with --init {}",
          file, hash, before == recorded.end() ? "no such file" : before->second,
          config_yaml.parent_path().string()));
  }
}

std::unique_ptr<Tokenizer> default_tokenizer(const TrainOptions& options) {
  const DataFiles files = DataFiles::find(options.data);
  if (!files.texts.empty()) {
    say(options.common,
        "no --tokenizer: the bytes of the texts are the tokens, with a token before and one after "
        "each text (bytes)");
    return load_tokenizer("bytes");
  }
  const auto extension = files.train.extension();
  if (extension != ".txt" && extension != ".md") return nullptr;
  say(options.common, "no --tokenizer: the bytes of the text are the tokens (bytes-256)");
  return load_tokenizer("bytes-256");
}

std::string run_info_text(const Backend& backend, const TrainingData& data,
                          const Tokenizer* tokenizer,
                          const std::vector<std::pair<std::string, fs::path>>& models) {
  std::string text = "\n# What the run was made with and from; not read as flags\nrun_info:\n";
  text += fmt::format("  mixtral: {}\n", yaml_scalar(version()));
  text += fmt::format("  compiler: {}\n", yaml_scalar(__VERSION__));
  text += fmt::format("  device: {}\n", yaml_scalar(backend.description()));
  if (tokenizer) text += fmt::format("  tokenizer: {}\n", yaml_scalar(tokenizer->description()));
  text += "  data:\n";
  for (const auto& [file, hash] : data.hashes)
    text += fmt::format("    {}: {}\n", yaml_scalar(file), yaml_scalar(hash));
  text += "  models:\n";
  for (const auto& [flag, directory] : models)
    text += fmt::format("    {}: {}\n", flag, yaml_scalar(directory.string()));
  return text;
}

}  // namespace mixtral
