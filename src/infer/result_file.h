#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "infer/prompt_file.h"

namespace mixtral {

/// A file of results, a JSON object a line, in the order of the prompts' rows: {"index", "ids"
/// (prompt and new), "text" (new), "finish_reason"}, and with log-probabilities also "logprobs".
class ResultFile {
 public:
  enum class Existing { replace, resume };

  /// Opens a file; an empty path is standard output. With `resume`, the lines of an earlier run are
  /// kept, but for an unfinished one at the end. Throws Error when the file cannot be written or a
  /// line in it is no result of its row; without `resume`, when it holds fewer results than there
  /// are rows: those of a run that was interrupted.
  ResultFile(std::filesystem::path path, const std::vector<PromptRow>& rows, Existing existing);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  /// Rows, from the first on, whose results are written.
  int64_t done() const { return done_; }
  /// Adds a row's result. It is written as soon as those of the rows before are.
  void add(int64_t row, std::string line);

 private:
  int64_t keep_whole_lines(const std::vector<PromptRow>& rows, Existing existing);
  void write(std::string_view text);

  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t done_ = 0;
  std::map<int64_t, std::string> later_;  // results of rows after one that is still missing
};

/// The line of a result: see ResultFile.
enum class LogProbabilities { leave_out, include };
std::string result_line(int64_t index, const PromptRow& row, const GeneratedText& text,
                        const Tokenizer* tokenizer, LogProbabilities log_probabilities);

}  // namespace mixtral
