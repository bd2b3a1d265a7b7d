#include "text/sentencepiece_training.h"

#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "io/json.h"
#include "text/sentencepiece_model.h"

namespace mixtral {
namespace {

/// Training lines are cut to this: the trainer's work on a line should not depend on whether a file
/// happens to hold line ends.
constexpr size_t kLineBytes = 4096;

/// Keeps a random sample of the lines it is given, of bounded size, in their order. Each line draws
/// a number from its own position; when the sample is full, the bar for the number is lowered and
/// the lines above it dropped. So a line's fate depends on nothing but its position and the sizes.
class LineSample {
 public:
  LineSample(uint64_t limit, uint64_t seed) : limit_(limit), seed_(seed) {}

  void add(std::string_view line, SentencePieceTrained& counts) {
    if (line.empty()) return;
    const uint64_t position = counts.text_lines++;
    counts.text_bytes += line.size();
    const double draw = RandomStream(seed_, position).uniform();
    if (draw >= bar_) return;
    lines_.push_back({std::string(line), draw});
    bytes_ += line.size();
    while (bytes_ > limit_ && lines_.size() > 1) lower_bar();
  }

  uint64_t bytes() const { return bytes_; }
  std::vector<std::string> take() {
    std::vector<std::string> lines;
    lines.reserve(lines_.size());
    for (Line& line : lines_) lines.push_back(std::move(line.text));
    return lines;
  }

 private:
  struct Line {
    std::string text;
    double draw;
  };
  void lower_bar() {
    bar_ *= 0.75;
    std::erase_if(lines_, [&](const Line& line) {
      if (line.draw < bar_) return false;
      bytes_ -= line.text.size();
      return true;
    });
  }

  uint64_t limit_, seed_, bytes_ = 0;
  double bar_ = 1;
  std::vector<Line> lines_;
};

/// Cuts text into lines, and long lines after a space, or anywhere between characters.
void add_text(std::string_view text, LineSample& sample, SentencePieceTrained& counts) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    while (line.size() > kLineBytes) {
      size_t cut = line.rfind(' ', kLineBytes);
      if (cut == std::string_view::npos || cut == 0) {
        cut = kLineBytes;
        while (cut > 1 && (line[cut] & 0xC0) == 0x80) --cut;
      }
      sample.add(line.substr(0, cut), counts);
      line.remove_prefix(cut + (line[cut] == ' ' ? 1 : 0));
    }
    sample.add(line, counts);
  }
}

void add_record(const Json& record, LineSample& sample, SentencePieceTrained& counts) {
  bool any = false;
  for (const char* key : {"text", "prompt", "completion", "chosen", "rejected"}) {
    if (const Json* value = record.find(key)) {
      add_text(value->as_string(), sample, counts);
      any = true;
    }
  }
  if (const Json* messages = record.find("messages")) {
    for (const Json& message : messages->items()) {
      add_text(message.at("content").as_string(), sample, counts);
    }
    any = true;
  }
  if (!any) {
    throw Error(
        fmt::format("{}: expected a record with \"text\", \"messages\" or \"prompt\"; "
                    "a tokenizer cannot be trained on token ids",
                    record.where()));
  }
}

void add_file(const std::filesystem::path& path, LineSample& sample, SentencePieceTrained& counts) {
  const MappedFile file(path);
  if (path.extension() != ".jsonl") {
    add_text(file.text(), sample, counts);
    return;
  }
  std::string_view rest = file.text();
  for (uint64_t number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view row = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    add_record(Json::parse(row, fmt::format("{}:{}", path.string(), number)), sample, counts);
  }
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& source) {
  if (!std::filesystem::is_directory(source)) return {source};
  if (std::filesystem::exists(source / "train.jsonl")) return {source / "train.jsonl"};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    const auto extension = entry.path().extension();
    if (entry.is_regular_file() && (extension == ".jsonl" || extension == ".txt")) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    throw Error(
        fmt::format("{}: found nothing to train on; looked for train.jsonl, then *.jsonl "
                    "and *.txt, in this directory",
                    source.string()));
  }
  return files;
}

/// Hands lines to the trainer without a file between.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t at_ = 0;
};

}  // namespace

SentencePieceTrained train_sentencepiece(const std::vector<std::filesystem::path>& sources,
                                         const SentencePieceTraining& settings) {
  constexpr int32_t least = 3 + 256 + 1;
  if (settings.vocab_size < least || settings.vocab_size > static_cast<int32_t>(kMaxPieces)) {
    throw UsageError(fmt::format(
        "the vocabulary size is {}, expected {} (3 special and 256 byte pieces and text) to {}",
        settings.vocab_size, least, kMaxPieces));
  }
  if (!(settings.character_coverage >= 0.98 && settings.character_coverage <= 1)) {
    throw UsageError(fmt::format("the character coverage is {}, expected 0.98 to 1",
                                 settings.character_coverage));
  }
  SentencePieceTrained trained;
  LineSample sample(settings.sample_bytes, settings.seed);
  for (const auto& source : sources) {
    for (const auto& file : files_of(source)) add_file(file, sample, trained);
  }
  trained.sampled_bytes = sample.bytes();
  const std::vector<std::string> lines = sample.take();
  trained.sampled_lines = lines.size();
  if (lines.empty()) {
    throw Error(fmt::format("{}: there is no text to train a tokenizer on",
                            sources.empty() ? "no source" : sources[0].string()));
  }

  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(settings.vocab_size)},
      {"character_coverage", fmt::format("{}", settings.character_coverage)},
      {"byte_fallback", "true"},
      {"split_digits", settings.split_digits ? "true" : "false"},
      {"max_sentencepiece_length", std::to_string(settings.longest_piece)},
      {"max_sentence_length", std::to_string(2 * kLineBytes)},
      {"allow_whitespace_only_pieces", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "true"},
      {"hard_vocab_limit", "false"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      // The number is written into the model, whose bytes should not depend on the machine;
      // learning BPE hardly uses it.
      {"num_threads", "2"},
      {"minloglevel", "2"},
  };
  Lines iterator(lines);
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(arguments, &iterator, &trained.model);
  if (!status.ok()) {
    throw Error(
        fmt::format("training a tokenizer of {} pieces failed: {}; ask for more pieces or a "
                    "lower character coverage",
                    settings.vocab_size, status.message()));
  }
  const auto model = parse_sentencepiece_model(trained.model, "the trained tokenizer");
  if (model.pieces.size() != static_cast<size_t>(settings.vocab_size)) {
    throw Error(
        fmt::format("the text gives {} pieces, fewer than the {} asked for; give more text "
                    "or ask for at most {} pieces",
                    model.pieces.size(), settings.vocab_size, model.pieces.size()));
  }
  return trained;
}

}  // namespace mixtral
