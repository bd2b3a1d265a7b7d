#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "data/record.h"
#include "text/tokenizer.h"

namespace mixtral {

/// How records become tokens.
struct EncodeOptions {
  RecordRules rules;
  /// Of {"text"}: everything up to and including the last response marker is masked. Prompts, and
  /// the user's turns of messages, always are.
  bool mask_prompt = false;
  std::string response_marker = "###Assistant:";
  // Around text, prompt with completion, and preference pairs, where the tokenizer has them. Rows
  // of ids are taken as they are, and so is a plain text file, which is cut into windows anyway.
  bool bos = true, eos = true;
};

/// A line that is no record: "train.jsonl:12: reason".
struct Problem {
  int64_t line = 0;  // from 1
  std::string message;
};

struct CorpusCounts {
  int64_t bytes = 0, lines = 0, records = 0, tokens = 0;
  int64_t label_tokens = 0;  // that a loss is taken of
  int64_t longest = 0;       // tokens of the longest record
  int64_t duplicates = 0;    // records whose line occurred before
  std::array<int64_t, kRecordKinds> kinds{};
};

/// One tokenised document: tokens[i] is to be predicted unless labels[i] is -100 (labels are not
/// shifted).
struct Example {
  std::vector<int32_t> tokens, labels;
};

/// Tokenises a record: one example, or two (chosen, rejected) of a preference pair. `tokenizer` may
/// be null for rows of ids. Throws Error naming the source.
std::vector<Example> encode_record(const Record& record, const Tokenizer* tokenizer,
                                   const EncodeOptions& options, std::string_view source);

/// Tokenised documents end to end, kept compactly: two bytes a token where the vocabulary allows.
/// Of preference records, documents 2i and 2i+1 are the chosen and the rejected one.
class Corpus {
 public:
  int64_t documents() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t tokens() const { return starts_.back(); }
  /// Where document d begins among the tokens; starts()[documents()] is their number.
  std::span<const int64_t> starts() const { return starts_; }
  int64_t length(int64_t d) const {
    return starts_[static_cast<size_t>(d) + 1] - starts_[static_cast<size_t>(d)];
  }
  int32_t token(int64_t i) const {
    return wide_.empty() ? narrow_[static_cast<size_t>(i)] : wide_[static_cast<size_t>(i)];
  }
  /// The token that should stand at i, or -100.
  int32_t label(int64_t i) const;
  /// Whether any token from `begin` to before `end` is one to be learnt.
  bool has_label(int64_t begin, int64_t end) const;
  bool is_paired() const { return paired_; }
  const CorpusCounts& counts() const { return counts_; }

  void add(const Example& example);
  void set_paired() { paired_ = true; }
  CorpusCounts& counts() { return counts_; }

  /// Writes the tokens to a file, atomically; load() takes them back if `key` is the one they were
  /// saved under and the file is whole, and else returns false. Throws Error when writing fails.
  void save(const std::filesystem::path& path, uint64_t key) const;
  bool load(const std::filesystem::path& path, uint64_t key);

 private:
  void widen();
  std::vector<uint16_t> narrow_;
  std::vector<int32_t> wide_;    // in its place once an id needs more than 16 bits
  std::vector<int32_t> labels_;  // empty while every token is its own label
  std::vector<int64_t> starts_{0};
  CorpusCounts counts_;
  bool paired_ = false;
};

/// Which part of one file that holds training and validation data: of plain text the end validates,
/// of records each n-th.
struct FilePart {
  enum class Which { whole, training, validation };
  Which which = Which::whole;
  double fraction = 0;  // that validates

  /// Whether it has the i-th line of a file of records.
  bool has_line(int64_t i) const;
  /// Its bytes of a plain text, begun and ended at whole characters.
  std::string_view of(std::string_view text) const;
};

struct CorpusOptions {
  EncodeOptions encode;
  FilePart part;
  std::filesystem::path cache;   // a directory for tokens; empty: none
  int64_t problem_limit = 1000;  // further problems are counted, not kept
  std::function<void(int64_t lines_done, int64_t lines)> progress;
};

struct CorpusResult {
  Corpus corpus;
  std::vector<Problem> problems;  // in line order
  int64_t problem_count = 0;
  std::vector<uint64_t> line_hashes;  // of the records' lines, sorted; none from the cache
  bool from_cache = false;
};

/// Reads, checks and tokenises a file in one pass, which finds every bad line. Records of several
/// kinds may stand in one file, except that preference pairs stand alone. `tokenizer` may be null
/// for rows of ids.
CorpusResult read_corpus(const RecordFile& file, const Tokenizer* tokenizer,
                         const CorpusOptions& options, ThreadPool& pool);

/// The same, but throws Error listing the problems (the first twenty, with the command that shows
/// and mends all of them), or saying that there is nothing to learn: fewer than two tokens.
Corpus load_corpus(const std::filesystem::path& path, const Tokenizer* tokenizer,
                   const CorpusOptions& options, ThreadPool& pool);

}  // namespace mixtral
