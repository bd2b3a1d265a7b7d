#include "infer/result_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/advice.h"
#include "base/file.h"
#include "io/json.h"

namespace mixtral {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view what) {
  throw Error(fmt::format("{}: cannot {}: {}", path.string(), what, std::strerror(errno)));
}

/// Throws Error unless the line is the result of row `index`.
void check_result(std::string_view line, int64_t index, const std::vector<PromptRow>& rows,
                  const std::string& source) {
  if (index >= static_cast<int64_t>(rows.size()))
    throw AdvisedError(fmt::format(
        "{}: there are results of more than the {} rows of ‹data›, so they are of other "
        "data; name another file with ‹out›",
        source, rows.size()));
  const Json json = Json::parse(line, source);
  const PromptRow& row = rows[static_cast<size_t>(index)];
  const auto& ids = json.at("ids").items();
  const auto same = [](const Json& found, int32_t expected) { return found.as_int() == expected; };
  if (json.at("index").as_int() != index || ids.size() < row.prompt.size() ||
      !std::equal(row.prompt.begin(), row.prompt.end(), ids.begin(),
                  [&](int32_t expected, const Json& found) { return same(found, expected); }))
    throw AdvisedError(
        fmt::format("{}: is no result of {}; name another file with ‹out›", source, row.source));
}

}  // namespace

ResultFile::ResultFile(std::filesystem::path path, const std::vector<PromptRow>& rows,
                       Existing existing)
    : path_(std::move(path)) {
  if (path_.empty()) {
    descriptor_ = STDOUT_FILENO;
    return;
  }
  const int64_t kept = keep_whole_lines(rows, existing);
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(path_, "be opened for writing");
  if (::ftruncate(descriptor_, kept) != 0 && kept > 0) fail(path_, "be truncated");
  if (::lseek(descriptor_, 0, SEEK_END) < 0 && errno != ESPIPE) fail(path_, "be written");
}

ResultFile::~ResultFile() {
  if (descriptor_ >= 0 && !path_.empty()) ::close(descriptor_);
}

/// Counts the results in the file that this run goes on from, and returns their bytes.
int64_t ResultFile::keep_whole_lines(const std::vector<PromptRow>& rows, Existing existing) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path_, error)) return 0;
  const MappedFile file(path_);
  const std::string_view text = file.text();
  // What stands after the last new line was being written when the run ended.
  const std::string_view whole = text.substr(0, text.rfind('\n') + 1);
  const auto count = static_cast<int64_t>(std::ranges::count(whole, '\n'));
  if (existing == Existing::replace) {
    if (!text.empty() && count < static_cast<int64_t>(rows.size()))
      throw AdvisedError(
          fmt::format("{}: holds {} results of {} rows, as a run leaves them that was interrupted; "
                      "go on with ‹resume›, or remove the file",
                      path_.string(), count, rows.size()));
    return 0;
  }
  for (size_t begin = 0; begin < whole.size(); ++done_) {
    const size_t end = whole.find('\n', begin);
    check_result(whole.substr(begin, end - begin), done_, rows,
                 fmt::format("{}:{}", path_.string(), done_ + 1));
    begin = end + 1;
  }
  return static_cast<int64_t>(whole.size());
}

void ResultFile::add(int64_t row, std::string line) {
  later_.emplace(row, std::move(line));
  std::string ready;
  for (auto next = later_.find(done_); next != later_.end(); next = later_.find(done_)) {
    ready += next->second;
    ready += '\n';
    later_.erase(next);
    ++done_;
  }
  write(ready);
}

void ResultFile::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path_.empty() ? "standard output" : path_, "be written");
    text.remove_prefix(static_cast<size_t>(written));
  }
}

std::string result_line(int64_t index, const PromptRow& row, const GeneratedText& text,
                        const Tokenizer* tokenizer, LogProbabilities log_probabilities) {
  nlohmann::ordered_json json;
  json["index"] = index;
  json["ids"] = row.prompt;
  for (const GeneratedToken& token : text.tokens) json["ids"].push_back(token.id);
  if (tokenizer) json["text"] = text.text;
  // The usual names: to a reader, a full context is a length.
  json["finish_reason"] =
      name(text.reason == FinishReason::context ? FinishReason::length : text.reason);
  if (log_probabilities == LogProbabilities::include) {
    json["logprobs"] = nlohmann::ordered_json::array();
    for (const GeneratedToken& token : text.tokens)
      json["logprobs"].push_back(token.log_probability);
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace mixtral
