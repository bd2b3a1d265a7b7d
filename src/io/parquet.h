#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/parquet_metadata.h"

namespace mixtral {

/// A row of a table as a JSON object.
struct ParquetRow {
  std::string_view json;  // bytes of texts that are no UTF-8 stay; valid until the next row
  int64_t number = 0;     // from 1, in the file
};

/// Reads the rows of a Parquet file (https://parquet.apache.org/docs/file-format). Read are texts,
/// numbers and truth values, which may be absent, in structures and lists of any nesting; pages of
/// both versions, uncompressed or in Snappy, gzip or Zstandard; all encodings but BIT_PACKED. A
/// page of each column is in memory at a time.
class ParquetFile {
 public:
  /// The key that a column has in the rows; nothing where it is left out, and then not read.
  using KeyOf = std::function<std::optional<std::string>(std::string_view column)>;

  /// `file` is the whole file, which must outlive this, `source` its name in errors. Throws Error
  /// where the footer is damaged.
  ParquetFile(std::string_view file, std::string source);

  /// Columns by their names, without those within them.
  std::vector<std::string> columns() const;
  int64_t rows() const { return metadata_.rows; }

  /// Hands out the rows in order, until `sink` returns false. Absent values are null, dates and
  /// times numbers as they are stored, numbers that are not finite null. Throws Error naming file,
  /// row group and column for what is damaged, and file and column for a column that is wanted and
  /// cannot be read (a map, a decimal number, INT96, fixed-length bytes, one of another codec).
  void each_row(const KeyOf& key_of, const std::function<bool(const ParquetRow&)>& sink) const;

 private:
  std::string_view file_;
  std::string source_;
  ParquetMetadata metadata_;
};

}  // namespace mixtral
