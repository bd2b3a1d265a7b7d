#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/parquet_encoding.h"

namespace mixtral {

/// What a field of a Parquet file means, as far as it is read otherwise than by its type.
enum class ParquetMeaning : uint8_t { plain, list, map, unsigned_integer, unread };

/// A field: a group of fields, or a column of values.
struct ParquetNode {
  enum class Repetition : uint8_t { required, optional, repeated };

  std::string name, path;  // "role", "messages.list.element.role"; the root's path is empty
  Repetition repetition = Repetition::required;
  ParquetMeaning meaning = ParquetMeaning::plain;
  std::string_view unread;  // what it is, where the meaning is `unread`: "a decimal number"
  ParquetType type = ParquetType::text;  // of a column's values
  std::vector<int> children;             // of a group; empty: it is a column
  // Levels at and above which, in Dremel's encoding, it is repeated once more and it is there.
  int repetition_level = 0, definition_level = 0;
  int first_column = 0, end_column = 0;  // of the columns, those that it is made of
};

/// The part of a column that lies in one row group.
struct ParquetChunk {
  int64_t codec = 0;
  int64_t entries = 0;            // values, nulls and empty lists
  uint64_t begin = 0, bytes = 0;  // in the file
  bool is_encrypted = false, is_elsewhere = false;
};

struct ParquetRowGroup {
  int64_t rows = 0;
  std::vector<ParquetChunk> chunks;  // one a column
};

/// The footer of a Parquet file
/// (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
struct ParquetMetadata {
  std::vector<ParquetNode> nodes;  // the first is the root; children come behind their parents
  std::vector<int> columns;        // the nodes that hold values, in the order of the file
  std::vector<ParquetRowGroup> groups;
  int64_t rows = 0;

  /// Checks the counts, types, levels and places that the footer gives before anything is allocated
  /// for them: sums of rows, columns of each row group in the order of the schema, chunks within
  /// the file. `file` is the whole file, `source` its name in errors. Throws Error naming source
  /// and rule.
  static ParquetMetadata parse(std::string_view file, std::string_view source);
};

}  // namespace mixtral
