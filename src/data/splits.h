#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/corpus.h"

namespace mixtral {

/// The corpus of a split of --data. Of a single file, `validation_fraction` is val and the rest
/// train (FilePart); of a folder of at least ten texts, whole texts are, and of fewer the end of
/// each. There is no test then, which would be the part that chose the best checkpoint. Throws
/// Error as load_corpus, or when the split is absent.
Corpus load_split(const DataFiles& files, Split split, double validation_fraction,
                  const Tokenizer* tokenizer, CorpusOptions options, ThreadPool& pool);
/// Whether load_split() would find that split. A single file of so few records that none would
/// validate has no val.
bool has_split(const DataFiles& files, Split split, double validation_fraction);
/// As load_split(), with what was read beside the corpus: a list of problems takes an error's
/// place.
CorpusResult read_split(const DataFiles& files, Split split, double validation_fraction,
                        const Tokenizer* tokenizer, CorpusOptions options, ThreadPool& pool);
/// The corpus of a folder of texts, or of options.part of it. Throws Error when it is empty.
Corpus load_texts(const DataFiles& files, const CorpusOptions& options, const Tokenizer* tokenizer,
                  ThreadPool& pool);
/// "the last 10% of the text", "every 10th record", …: what a single file's val is; empty
/// elsewhere.
std::string validation_text(const DataFiles& files, double validation_fraction);
/// The texts of a folder that a split has, whole or in part.
std::vector<std::filesystem::path> split_texts(const DataFiles& files, Split split,
                                               double validation_fraction);

}  // namespace mixtral
