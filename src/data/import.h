#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "data/import_splits.h"

namespace mixtral {

enum class TextEncoding { utf8, latin1 };

struct ImportOptions {
  std::vector<std::filesystem::path> inputs;           // text files, and folders that are searched
  std::filesystem::path out;                           // gets train, val and test .jsonl
  std::vector<std::string> extensions{".txt", ".md"};  // of files taken from folders
  SplitShares shares;                                  // of the documents
  int64_t max_characters = 20'000;  // longer texts are cut into several documents
  TextEncoding encoding = TextEncoding::utf8;
  bool overwrite = false;  // splits that `out` holds already
};

struct ImportSummary {
  int64_t files = 0, documents[3] = {}, bytes[3] = {};
  std::vector<std::string> notes;    // what was mended: "a.txt: 3 bytes were no UTF-8 …"
  std::vector<std::string> skipped;  // what was left out, and why
};

/// Cuts a text of more than `limit` bytes where it hurts least: before a chapter's heading, else
/// between paragraphs, lines, sentences, words. Pieces are trimmed; none is empty.
std::vector<std::string> split_document(std::string_view text, int64_t limit);

/// Turns text files into records. A file stays in one split where there are at least twenty files;
/// of fewer, the documents they are cut into are dealt out. Which goes where follows from the seed
/// and the order of the names. Throws Error, with nothing written, when an input does not exist,
/// nothing can be read, nothing is left to train on, or `out` holds splits that are not to be
/// overwritten, or that this import would not make.
ImportSummary import_texts(const ImportOptions& options);

}  // namespace mixtral
