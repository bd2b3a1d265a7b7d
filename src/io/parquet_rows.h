#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/parquet_column.h"

namespace mixtral {

/// A column of the table, with the key that it has in a row.
struct ParquetKey {
  int node = 0;
  std::string key;
};

/// Throws Error naming column and reason where a field, or one within it, is of a kind that is not
/// read.
void check_readable(const ParquetMetadata& metadata, int node, std::string_view source);

/// Puts the rows of a row group together from its columns, as Dremel does: levels say where lists
/// begin and go on, and what is absent.
class ParquetRowBuilder {
 public:
  /// All must outlive this. Throws Error when a column's first page is damaged.
  ParquetRowBuilder(std::string_view file, std::string_view source, const ParquetMetadata& metadata,
                    size_t group, const std::vector<ParquetKey>& keys);

  /// Writes the next row into `json`, which it empties. Throws Error when columns end, or do not
  /// agree with one another, and when the row is larger than 64 MiB.
  void next(std::string& json);
  /// Throws Error unless each column has ended.
  void finish() const;

 private:
  const ParquetNode& node_of(int node) const { return metadata_.nodes[static_cast<size_t>(node)]; }
  ParquetColumn& first_column(const ParquetNode& node) const {
    return *columns_[static_cast<size_t>(node.first_column)];
  }
  bool is_there(const ParquetNode& node) const;
  bool goes_on(const ParquetNode& node) const;
  void pass_over(const ParquetNode& node);
  void write_field(const ParquetNode& node, std::string& json);
  void write_present(const ParquetNode& node, std::string& json);
  void write_items(const ParquetNode& repeated, bool is_element, std::string& json);
  void write_value(const ParquetNode& node, std::string& json);

  const ParquetMetadata& metadata_;
  const std::vector<ParquetKey>& keys_;
  std::vector<std::unique_ptr<ParquetColumn>> columns_;  // null: not wanted
};

}  // namespace mixtral
