#include "io/parquet_column.h"

#include <bit>
#include <cstring>
#include <utility>

#include "io/parquet_thrift.h"

namespace mixtral {
namespace {

constexpr int64_t kDataPage = 0, kDictionaryPage = 2, kDataPageV2 = 3;
constexpr auto kRuns = static_cast<int64_t>(ParquetEncoding::runs);

}  // namespace

struct ParquetColumn::PageHeader {
  int64_t type = -1, size = -1, stored_size = -1;
  int64_t entries = -1, encoding = -1;
  int64_t repetition_encoding = kRuns, definition_encoding = kRuns;  // of version 1
  int64_t repetition_size = 0, definition_size = 0;                  // of version 2
  bool is_compressed = true;
  std::optional<int64_t> checksum;
};

ParquetColumn::ParquetColumn(std::string_view file, const ParquetChunk& chunk,
                             const ParquetNode& node, ParquetPlace place)
    : chunk_(file.substr(chunk.begin, chunk.bytes)),
      node_(node),
      place_(std::move(place)),
      codec_(static_cast<ParquetCodec>(chunk.codec)),
      entries_left_(chunk.entries) {
  if (chunk.is_encrypted)
    place_.fail("is encrypted, which is not read here; write the file again without");
  if (chunk.is_elsewhere) place_.fail("lies in another file, which is not read here");
  check_codec(chunk.codec, place_);
  advance();
  if (repetition_ != 0) place_.fail("begins within a row; the file is damaged");
}

ParquetColumn::PageHeader ParquetColumn::read_header() {
  PageHeader header;
  ThriftReader thrift(chunk_, place_);
  thrift.each_field([&](int id, ThriftType type) {
    switch (id) {
      case 1:
        header.type = thrift.integer(type);
        return true;
      case 2:
        header.size = thrift.integer(type);
        return true;
      case 3:
        header.stored_size = thrift.integer(type);
        return true;
      case 4:
        header.checksum = thrift.integer(type);
        return true;
      case 5:
      case 7:
      case 8:
        break;
      default:
        return false;
    }
    if (type != ThriftType::structure) return false;
    // The three kinds of pages call the same things by other numbers.
    const bool is_v2 = id == 8, is_data = id == 5;
    thrift.each_field([&](int part, ThriftType value) {
      if (part == 1) {
        header.entries = thrift.integer(value);
      } else if (part == (is_v2 ? 4 : 2)) {
        header.encoding = thrift.integer(value);
      } else if (is_data && part == 3) {
        header.definition_encoding = thrift.integer(value);
      } else if (is_data && part == 4) {
        header.repetition_encoding = thrift.integer(value);
      } else if (is_v2 && part == 5) {
        header.definition_size = thrift.integer(value);
      } else if (is_v2 && part == 6) {
        header.repetition_size = thrift.integer(value);
      } else if (is_v2 && part == 7) {
        header.is_compressed = thrift.boolean(value);
      } else {
        return false;
      }
      return true;
    });
    return true;
  });
  chunk_.remove_prefix(thrift.position());
  const auto left = static_cast<int64_t>(chunk_.size());
  if (header.size < 0 || header.stored_size < 0 || header.stored_size > left)
    place_.fail(
        fmt::format("a page of {} bytes, {} in the file, does not fit into the {} that are "
                    "left of the column; the file is damaged",
                    header.size, header.stored_size, left));
  return header;
}

void ParquetColumn::read_dictionary(const PageHeader& header, std::string_view page) {
  if (dictionary_) place_.fail("has two dictionaries; the file is damaged");
  if (header.entries < 0 ||
      (header.encoding != static_cast<int64_t>(ParquetEncoding::plain) &&
       header.encoding != static_cast<int64_t>(ParquetEncoding::plain_dictionary)))
    place_.fail(
        "its dictionary is in an encoding that the format does not have; the file is "
        "damaged");
  dictionary_.emplace(decompress(codec_, page, static_cast<uint64_t>(header.size), place_),
                      static_cast<uint64_t>(header.entries), node_.type, place_);
}

RunReader ParquetColumn::take_levels(std::string_view& page, int most,
                                     std::optional<uint64_t> size) {
  if (!size) {
    if (most == 0) return {};
    uint32_t stored = 0;
    if (page.size() < sizeof stored) place_.fail("a page ends within its levels");
    std::memcpy(&stored, page.data(), sizeof stored);
    page.remove_prefix(sizeof stored);
    size = stored;
  }
  if (*size > page.size())
    place_.fail(
        fmt::format("a page has {} bytes of levels, more than it is long; the file is "
                    "damaged",
                    *size));
  const std::string_view levels = page.substr(0, *size);
  page.remove_prefix(*size);
  return {levels, static_cast<int>(std::bit_width(static_cast<unsigned>(most))), place_};
}

void ParquetColumn::start_page(const PageHeader& header, std::string_view page) {
  if (header.entries < 0 || header.entries > entries_left_)
    place_.fail(fmt::format("a page has {} entries of the {} that are left; the file is damaged",
                            header.entries, entries_left_));
  const int repetitions = node_.repetition_level, definitions = node_.definition_level;
  const auto size = static_cast<uint64_t>(header.size);
  std::string_view values;
  if (header.type == kDataPageV2) {
    // Levels are not compressed; the size is that of levels and values together.
    if (header.repetition_size < 0 || header.definition_size < 0)
      place_.fail("a page has levels of a negative size; the file is damaged");
    repetitions_ = take_levels(page, repetitions, header.repetition_size);
    definitions_ = take_levels(page, definitions, header.definition_size);
    const auto levels = static_cast<uint64_t>(header.repetition_size + header.definition_size);
    if (levels > size) place_.fail("a page is smaller than its levels; the file is damaged");
    const ParquetCodec codec = header.is_compressed ? codec_ : ParquetCodec::none;
    page_ = decompress(codec, page, size - levels, place_);
    values = page_;
  } else {
    page_ = decompress(codec_, page, size, place_);
    values = page_;
    if ((repetitions > 0 && header.repetition_encoding != kRuns) ||
        (definitions > 0 && header.definition_encoding != kRuns))
      place_.fail(
          "its levels are in the encoding BIT_PACKED of the format's first version, which "
          "is not read here; write the file again");
    repetitions_ = take_levels(values, repetitions, std::nullopt);
    definitions_ = take_levels(values, definitions, std::nullopt);
  }
  page_entries_ = header.entries;
  decoder_ = make_decoder({.bytes = values,
                           .encoding = header.encoding,
                           .type = node_.type,
                           .most = static_cast<uint64_t>(header.entries),
                           .dictionary = dictionary_ ? &*dictionary_ : nullptr},
                          place_);
}

void ParquetColumn::next_page() {
  const PageHeader header = read_header();
  const std::string_view page = chunk_.substr(0, static_cast<size_t>(header.stored_size));
  chunk_.remove_prefix(page.size());
  if (header.checksum && static_cast<uint32_t>(*header.checksum) != page_checksum(page))
    place_.fail(
        "the check sum of a page is not the one in its header; the file is damaged: "
        "download it again");
  if (header.type == kDictionaryPage)
    read_dictionary(header, page);
  else if (header.type == kDataPage || header.type == kDataPageV2)
    start_page(header, page);
  // Pages of other types, such as indices, hold no values.
}

void ParquetColumn::advance() {
  if (entries_left_ == 0) {
    at_end_ = true;
    repetition_ = definition_ = 0;
    return;
  }
  while (page_entries_ == 0) {
    if (chunk_.empty())
      place_.fail(
          fmt::format("its pages end {} entries too early; the file is damaged", entries_left_));
    next_page();
  }
  --page_entries_;
  --entries_left_;
  const int repetitions = node_.repetition_level, definitions = node_.definition_level;
  repetition_ = repetitions == 0 ? 0 : static_cast<int>(repetitions_.next());
  definition_ = definitions == 0 ? 0 : static_cast<int>(definitions_.next());
  if (repetition_ > repetitions || definition_ > definitions)
    place_.fail(
        fmt::format("has an entry of the levels {} and {}, above {} and {}; the file is "
                    "damaged",
                    repetition_, definition_, repetitions, definitions));
  if (definition_ == definitions) value_ = decoder_->next();
}

}  // namespace mixtral
