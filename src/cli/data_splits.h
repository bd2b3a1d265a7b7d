#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/splits.h"

namespace mixtral {

/// How a command reads --data.
struct DataFlags {
  std::string data;
  EncodeOptions encode;
  double validation_fraction = 0.1;  // of a single file, or a folder of texts
  bool token_cache = false;          // keep tokens in a folder beside the data
  int threads = 0;                   // 0: one a core
};

/// The splits of --data, which every command that trains or scores opens here.
class DataSplits {
 public:
  /// Throws Error when there is no such data. `tokenizer` may be null for rows of ids, and must
  /// outlive this.
  DataSplits(DataFlags flags, const Tokenizer* tokenizer);

  bool has(Split split) const { return has_split(files_, split, flags_.validation_fraction); }
  /// The file that the split is in. Throws Error naming the splits that there are.
  const std::filesystem::path& file(Split split) const;
  /// All files of the split: more than one of a folder of texts.
  std::vector<std::filesystem::path> files(Split split) const;
  /// What of a single file is kept for validation, in words; empty where nothing is.
  std::string validation_text() const {
    return mixtral::validation_text(files_, flags_.validation_fraction);
  }
  /// Reads, checks and tokenises a split. Throws Error listing every bad line.
  Corpus load(Split split) const;
  /// What a command scores: all of one file, or a directory's split.
  Corpus load_whole_or(Split split) const;

 private:
  DataFlags flags_;
  DataFiles files_;
  const Tokenizer* tokenizer_;
  CorpusOptions options_;
};

}  // namespace mixtral
