#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "io/parquet_codec.h"
#include "io/parquet_encoding.h"
#include "io/parquet_metadata.h"

namespace mixtral {

/// Reads the part of a column that lies in a row group, entry by entry and page by page: one
/// decompressed page, and the dictionary, are in memory. An entry is a value, or a null or an empty
/// list where a value would be.
class ParquetColumn {
 public:
  /// `place` is what errors begin with. File and node must outlive this. Throws Error when the
  /// first page is damaged, or the column is encrypted, in another file or compressed otherwise
  /// than decompress() knows.
  ParquetColumn(std::string_view file, const ParquetChunk& chunk, const ParquetNode& node,
                ParquetPlace place);
  ParquetColumn(const ParquetColumn&) = delete;
  ParquetColumn& operator=(const ParquetColumn&) = delete;

  /// Whether all entries were read; then the levels are 0.
  bool at_end() const { return at_end_; }
  // Levels of the entry: which of the fields around it is repeated, 0 for a new row; and how many
  // of those that may be absent are there.
  int repetition() const { return repetition_; }
  int definition() const { return definition_; }
  /// The entry's value, of one whose definition level is the node's. Valid until advance().
  const ParquetValue& value() const { return value_; }

  /// Goes to the next entry. Throws Error when its page is damaged.
  void advance();

  const ParquetPlace& place() const { return place_; }

 private:
  struct PageHeader;

  void next_page();
  PageHeader read_header();
  void read_dictionary(const PageHeader& header, std::string_view page);
  void start_page(const PageHeader& header, std::string_view page);
  /// The levels at the front of a page, which they are taken from.
  RunReader take_levels(std::string_view& page, int most, std::optional<uint64_t> size);

  std::string_view chunk_;
  const ParquetNode& node_;
  ParquetPlace place_;
  ParquetCodec codec_;
  int64_t entries_left_;      // of the chunk, behind the one that is read
  int64_t page_entries_ = 0;  // of the page, likewise
  std::optional<ParquetDictionary> dictionary_;
  std::string page_;
  RunReader repetitions_, definitions_;
  std::unique_ptr<ValueDecoder> decoder_;
  bool at_end_ = false;
  int repetition_ = 0, definition_ = 0;
  ParquetValue value_;
};

}  // namespace mixtral
