#include "data/csv.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"

namespace mixtral {

CsvReader::CsvReader(std::string_view text, std::string source, char delimiter)
    : text_(text), source_(std::move(source)), delimiter_(delimiter) {
  if (text_.starts_with("\xEF\xBB\xBF")) text_.remove_prefix(3);
}

void CsvReader::refuse(int64_t line, std::string_view reason) const {
  throw Error(fmt::format("{}:{}: {}", source_, line, reason));
}

std::string CsvReader::quoted_field() {
  const int64_t begun = line_;
  std::string field;
  for (++at_; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '"') {
      if (at_ + 1 == text_.size() || text_[at_ + 1] != '"') {
        ++at_;
        return field;
      }
      ++at_;
    }
    line_ += c == '\n';
    field += c;
  }
  refuse(begun, "a field begins with a quote that is never closed");
}

std::string CsvReader::plain_field() {
  const size_t begin = at_;
  while (at_ < text_.size() && text_[at_] != delimiter_ && text_[at_] != '\n') {
    if (text_[at_] == '"')
      refuse(line_,
             "a quote stands within a field that does not begin with one; double it, and "
             "put the field in quotes");
    ++at_;
  }
  std::string_view field = text_.substr(begin, at_ - begin);
  const bool row_ends = at_ == text_.size() || text_[at_] == '\n';
  if (row_ends && field.ends_with('\r')) field.remove_suffix(1);
  return std::string(field);
}

bool CsvReader::next(CsvRow& row) {
  while (at_ < text_.size()) {
    row.line = line_;
    row.fields.clear();
    bool quoted = false;
    while (true) {
      const bool in_quotes = at_ < text_.size() && text_[at_] == '"';
      quoted = quoted || in_quotes;
      row.fields.push_back(in_quotes ? quoted_field() : plain_field());
      if (in_quotes && at_ < text_.size() && text_[at_] == '\r' &&
          (at_ + 1 == text_.size() || text_[at_ + 1] == '\n'))
        ++at_;
      if (at_ == text_.size() || text_[at_] == '\n') break;
      if (text_[at_] != delimiter_) refuse(line_, "text follows the quote that closes a field");
      ++at_;
    }
    if (at_ < text_.size()) ++at_;
    ++line_;
    if (row.fields.size() > 1 || quoted || !row.fields.front().empty()) return true;
  }
  return false;
}

}  // namespace mixtral
