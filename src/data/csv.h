#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// A row of a table in comma-separated values.
struct CsvRow {
  int64_t line = 0;  // on which it begins, from 1
  std::vector<std::string> fields;
};

/// Reads comma-separated values as RFC 4180 has them: fields are separated by a delimiter, rows by
/// LF or CR LF; a field in quotes may hold delimiters, line ends and doubled quotes. A byte order
/// mark at the front is dropped, and so are rows of nothing at all.
class CsvReader {
 public:
  /// `source` names the text in errors. The text must outlive this.
  CsvReader(std::string_view text, std::string source, char delimiter = ',');

  /// The next row, or false at the end. Throws Error "SOURCE:LINE: reason" for a quote that is not
  /// closed, text behind a closing quote, and a quote within a field that has none in front.
  bool next(CsvRow& row);

 private:
  std::string quoted_field();
  std::string plain_field();
  [[noreturn]] void refuse(int64_t line, std::string_view reason) const;

  std::string_view text_;
  std::string source_;
  char delimiter_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

}  // namespace mixtral
