#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/corpus.h"

namespace mixtral {

struct CheckOptions {
  CorpusOptions corpus;
  BatchOptions batches;
  /// Where records have rows of their own (pairs, Packing::off), those are as long as the longest,
  /// whatever batches.context says: what training does that is given no context.
  bool whole_records = false;
  double validation_fraction = 0.1;
  int64_t sample = 0;  // the record to show, from 0
};

/// One token of a record as training sees it.
struct SampleToken {
  int32_t id = 0;
  std::string label;  // as the vocabulary writes it; empty without a tokenizer
  bool learnt = false;
};

/// What a split holds.
struct SplitReport {
  Split split = Split::train;
  std::filesystem::path path;
  std::string part;  // of a single file's validation: which part that is
  CorpusCounts counts;
  std::vector<Problem> problems;
  int64_t problem_count = 0;
  int64_t also_in_train = 0;  // records of val or test whose line is in train, too
  // As arranged into batches; 0 where there are problems only.
  int64_t context = 0;  // tokens of a row at most
  int64_t rows = 0, arranged_tokens = 0, long_records = 0, dropped_tokens = 0;
  int64_t unlabelled_records = 0;  // left out: no label of theirs is within a row
  /// Control tokens that the file spells out as text, which training takes for ordinary pieces.
  std::vector<std::string> spelled_controls;
  std::vector<SampleToken> sample;
  int64_t sample_bos = 0;  // BOS tokens in the sample: one is right, two are a mistake
};

struct CheckReport {
  std::vector<SplitReport> splits;
  int64_t problem_count() const;
};

/// Reads all splits that --data has and reports on them; bad lines are reported, not thrown. Throws
/// Error when a file cannot be read at all.
CheckReport check_data(const DataFiles& files, const Tokenizer* tokenizer,
                       const CheckOptions& options, ThreadPool& pool);

struct FixSummary {
  int64_t lines = 0, kept = 0, mended = 0, dropped = 0;
};

/// Writes a copy with the lines that are records, mended where they can be, without the others.
/// Throws Error when `file` is plain text, or nothing would be left.
FixSummary fix_data(const RecordFile& file, const std::filesystem::path& out,
                    const RecordRules& rules);

}  // namespace mixtral
