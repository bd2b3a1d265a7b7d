#include "io/parquet.h"

#include <algorithm>
#include <utility>

#include "io/parquet_rows.h"

namespace mixtral {
namespace {

// Rows may be larger than the file, as where many refer to one text of a dictionary.
constexpr uint64_t kFreeText = uint64_t{64} << 20;
constexpr uint64_t kMostTextPerByte = 1000;

}  // namespace

ParquetFile::ParquetFile(std::string_view file, std::string source)
    : file_(file), source_(std::move(source)), metadata_(ParquetMetadata::parse(file_, source_)) {}

std::vector<std::string> ParquetFile::columns() const {
  std::vector<std::string> names;
  for (const int child : metadata_.nodes.front().children)
    names.push_back(metadata_.nodes[static_cast<size_t>(child)].name);
  return names;
}

void ParquetFile::each_row(const KeyOf& key_of,
                           const std::function<bool(const ParquetRow&)>& sink) const {
  std::vector<ParquetKey> keys;
  for (const int child : metadata_.nodes.front().children) {
    if (auto key = key_of(metadata_.nodes[static_cast<size_t>(child)].name)) {
      check_readable(metadata_, child, source_);
      keys.push_back({child, std::move(*key)});
    }
  }
  const uint64_t most = kFreeText + file_.size() * kMostTextPerByte;
  uint64_t written = 0;
  std::string json;
  ParquetRow row;
  for (size_t group = 0; group < metadata_.groups.size(); ++group) {
    ParquetRowBuilder builder(file_, source_, metadata_, group, keys);
    for (int64_t i = 0; i < metadata_.groups[group].rows; ++i) {
      builder.next(json);
      ++row.number;
      written += json.size();
      if (written > most)
        throw Error(
            fmt::format("{}: row {}: the rows are more than {} times as large as the file; "
                        "it is damaged, or made to fill the memory",
                        source_, row.number, kMostTextPerByte));
      row.json = json;
      if (!sink(row)) return;
    }
    builder.finish();
  }
}

}  // namespace mixtral
