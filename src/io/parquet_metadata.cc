#include "io/parquet_metadata.h"

#include <cstring>
#include <utility>

#include "base/printable.h"
#include "io/git_lfs.h"
#include "io/parquet_schema.h"
#include "io/parquet_thrift.h"

namespace mixtral {
namespace {

constexpr std::string_view kMagic = "PAR1", kEncryptedMagic = "PARE";
constexpr uint64_t kTail = 8;  // the footer's size, and the magic again
constexpr uint64_t kLargestFooter = uint64_t{64} << 20;
// The least that the description of a chunk takes in a footer.
constexpr uint64_t kLeastChunk = 16;
// Rows without a byte of their own, as of equal numbers: so many are taken for honest.
constexpr uint64_t kFreeRows = uint64_t{1} << 24;
constexpr uint64_t kMostRowsPerByte = 64;

class FooterReader {
 public:
  FooterReader(std::string_view file, std::string_view footer, const ParquetPlace& place)
      : file_(file), footer_(footer), place_(place), thrift_(footer, place) {}

  ParquetMetadata read() {
    thrift_.each_field([&](int id, ThriftType type) {
      switch (id) {
        case 2:
          read_parquet_schema(thrift_, type, place_, metadata_);
          return true;
        case 3:
          metadata_.rows = thrift_.integer(type);
          return true;
        case 4:
          if (metadata_.nodes.empty()) place_.fail("it has no schema before its row groups");
          thrift_.each_item(type, ThriftType::structure, [&] { read_group(); });
          return true;
        default:
          return false;
      }
    });
    if (metadata_.nodes.empty()) place_.fail("it has no schema; the file is damaged");
    check_rows();
    return std::move(metadata_);
  }

 private:
  void read_group() {
    ParquetRowGroup group;
    thrift_.each_field([&](int id, ThriftType type) {
      if (id == 3) {
        group.rows = thrift_.integer(type);
        return true;
      }
      if (id != 1) return false;
      thrift_.each_item(type, ThriftType::structure, [&] { read_chunk(group); });
      return true;
    });
    if (group.chunks.size() != metadata_.columns.size())
      place_.fail(fmt::format("row group {} has {} columns of {}; the file is damaged",
                              metadata_.groups.size(), group.chunks.size(),
                              metadata_.columns.size()));
    metadata_.groups.push_back(std::move(group));
  }

  void read_chunk(ParquetRowGroup& group) {
    if (group.chunks.size() == metadata_.columns.size() || ++chunks_ > footer_.size() / kLeastChunk)
      place_.fail(fmt::format("row group {} has more than its {} columns; the file is damaged",
                              metadata_.groups.size(), metadata_.columns.size()));
    ParquetChunk chunk;
    const ParquetNode& column =
        metadata_.nodes[static_cast<size_t>(metadata_.columns[group.chunks.size()])];
    bool is_described = false;
    thrift_.each_field([&](int id, ThriftType type) {
      switch (id) {
        case 1:
          chunk.is_elsewhere = !thrift_.text(type).empty();
          return true;
        case 3:
          if (type != ThriftType::structure) return false;
          read_description(chunk, column);
          is_described = true;
          return true;
        case 8:  // how it is encrypted
        case 9:
          chunk.is_encrypted = true;
          return false;
        default:
          return false;
      }
    });
    if (!is_described && !chunk.is_encrypted)
      place_.fail(fmt::format("row group {} does not say where column {} is; the file is damaged",
                              metadata_.groups.size(), printable(column.path)));
    group.chunks.push_back(chunk);
  }

  void read_description(ParquetChunk& chunk, const ParquetNode& column) {
    int64_t data = 0, dictionary = 0, bytes = 0, type_number = -1;
    std::string path;
    thrift_.each_field([&](int id, ThriftType type) {
      switch (id) {
        case 1:
          type_number = thrift_.integer(type);
          return true;
        case 3:
          thrift_.each_item(type, ThriftType::text, [&] {
            if (!path.empty()) path += '.';
            path += thrift_.text(ThriftType::text);
          });
          return true;
        case 4:
          chunk.codec = thrift_.integer(type);
          return true;
        case 5:
          chunk.entries = thrift_.integer(type);
          return true;
        case 7:
          bytes = thrift_.integer(type);
          return true;
        case 9:
          data = thrift_.integer(type);
          return true;
        case 11:
          dictionary = thrift_.integer(type);
          return true;
        default:
          return false;
      }
    });
    const auto fail = [&](const std::string& what) {
      place_.fail(fmt::format("row group {}, column {}: {}; the file is damaged",
                              metadata_.groups.size(), printable(column.path), what));
    };
    if (path != column.path) fail(fmt::format("column {} stands in its place", printable(path)));
    if (type_number != static_cast<int64_t>(column.type))
      fail("its type is not the one of the schema");
    // Chunks of a row group without rows may have no place.
    if (chunk.entries == 0 && bytes == 0) return;
    // Some writers leave the dictionary's offset at zero where there is none.
    const int64_t begin = dictionary > 0 && dictionary < data ? dictionary : data;
    const auto size = static_cast<int64_t>(file_.size());
    if (begin < static_cast<int64_t>(kMagic.size()) || bytes < 0 || begin > size ||
        bytes > size - begin)
      fail(fmt::format("its {} bytes from byte {} on are not within the file", bytes, begin));
    if (chunk.entries < 0) fail(fmt::format("it has {} values", chunk.entries));
    chunk.begin = static_cast<uint64_t>(begin);
    chunk.bytes = static_cast<uint64_t>(bytes);
  }

  void check_rows() const {
    int64_t rows = 0;
    for (const ParquetRowGroup& group : metadata_.groups)
      if (group.rows < 0 || __builtin_add_overflow(rows, group.rows, &rows))
        place_.fail(fmt::format("a row group has {} rows; the file is damaged", group.rows));
    if (rows != metadata_.rows)
      place_.fail(fmt::format("its row groups have {} rows, but it says {}; the file is damaged",
                              rows, metadata_.rows));
    const uint64_t most = kFreeRows + file_.size() * kMostRowsPerByte;
    if (static_cast<uint64_t>(rows) > most)
      place_.fail(
          fmt::format("it says that there are {} rows, more than a file of {} bytes has; "
                      "the file is damaged",
                      rows, file_.size()));
  }

  std::string_view file_, footer_;
  const ParquetPlace& place_;
  ThriftReader thrift_;
  ParquetMetadata metadata_;
  uint64_t chunks_ = 0;
};

}  // namespace

ParquetMetadata ParquetMetadata::parse(std::string_view file, std::string_view source) {
  const ParquetPlace whole{std::string(source)}, place{fmt::format("{}: the footer", source)};
  refuse_git_lfs_pointer(file, source);
  if (file.size() < kMagic.size() + kTail || !file.starts_with(kMagic)) {
    if (file.starts_with(kEncryptedMagic))
      whole.fail("the file is encrypted, which is not read here; write it again without");
    whole.fail("is no Parquet file: it does not begin with PAR1");
  }
  if (file.ends_with(kEncryptedMagic))
    whole.fail("its footer is encrypted, which is not read here; write it again without");
  if (!file.ends_with(kMagic))
    whole.fail(
        "it does not end as a Parquet file does, with PAR1; it is cut off: download it again");
  uint32_t size = 0;
  std::memcpy(&size, file.data() + file.size() - kTail, sizeof size);
  if (size > file.size() - kMagic.size() - kTail)
    place.fail(fmt::format("its {} bytes are more than the file has; the file is damaged", size));
  if (size > kLargestFooter)
    place.fail(fmt::format("it has {} bytes; at most {} are accepted", size, kLargestFooter));
  return FooterReader(file, file.substr(file.size() - kTail - size, size), place).read();
}

}  // namespace mixtral
