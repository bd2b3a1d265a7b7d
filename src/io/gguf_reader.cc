#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "base/printable.h"
#include "io/gguf.h"
#include "io/git_lfs.h"

namespace mixtral {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "GGUF";
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint64_t kLongestKey = 65'535;  // the format's own limit
constexpr uint64_t kLongestName = 1024;
constexpr uint64_t kMostTensors = 262'144;
constexpr uint64_t kMostKeys = 65'536;
constexpr uint32_t kHighestRank = 4;
constexpr int kDeepestArray = 4;
// The least that each takes in the file.
constexpr uint64_t kLeastKey = 8 + 4 + 1;
constexpr uint64_t kLeastTensor = 8 + 4 + 8 + 4 + 8;

}  // namespace

/// Reads a file's header from its first byte on.
class GgufReader {
 public:
  GgufReader(std::span<const std::byte> file, std::string_view source) : file_(file) {
    header_.source_ = source;
  }

  GgufHeader read() {
    read_start();
    const auto tensors = take<uint64_t>("the count of tensors");
    const auto keys = take<uint64_t>("the count of keys");
    check_count("tensors", tensors, kMostTensors, kLeastTensor);
    check_count("keys", keys, kMostKeys, kLeastKey);
    for (uint64_t i = 0; i < keys; ++i) read_key();
    read_alignment();
    header_.entries_.reserve(tensors);
    for (uint64_t i = 0; i < tensors; ++i) read_tensor();
    check_names();
    check_layout();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(fmt::format("{}: {}", header_.source_, what));
  }

  uint64_t left() const { return file_.size() - at_; }

  std::span<const std::byte> take_bytes(uint64_t count, std::string_view what) {
    if (count > left())
      fail(
          fmt::format("{} needs {} bytes, but only {} follow before the end of the file; it may be "
                      "cut short",
                      what, count, left()));
    const auto bytes = file_.subspan(at_, count);
    at_ += count;
    return bytes;
  }

  template <class T>
  T take(std::string_view what) {
    T value;
    std::memcpy(&value, take_bytes(sizeof value, what).data(), sizeof value);
    return value;
  }

  std::string_view take_text(uint64_t longest, const std::string& what) {
    const auto length = take<uint64_t>(fmt::format("the length of {}", what));
    if (length > longest)
      fail(fmt::format("{} would have a length of {} bytes; at most {} are accepted", what, length,
                       longest));
    const auto bytes = take_bytes(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  void check_count(std::string_view what, uint64_t count, uint64_t most, uint64_t least_bytes) {
    if (count > left() / least_bytes)
      fail(fmt::format(
          "it would have {} {}, too many for the {} bytes that follow before the end of "
          "the file; it may be cut short",
          count, what, left()));
    if (count > most)
      fail(fmt::format("it would have {} {}; at most {} are accepted", count, what, most));
  }

  void read_start() {
    if (file_.size() < kMagic.size())
      fail(fmt::format("not a GGUF file: {} bytes are too short", file_.size()));
    refuse_git_lfs_pointer({reinterpret_cast<const char*>(file_.data()), file_.size()},
                           header_.source_);
    if (std::memcmp(file_.data(), kMagic.data(), kMagic.size()) != 0)
      fail("not a GGUF file: it does not begin with the letters GGUF");
    at_ = kMagic.size();
    const auto version = take<uint32_t>("the version in the header");
    if (version == 0 || (version & 0xffffu) == 0)
      fail(
          "this GGUF file is big-endian; only little-endian files are read (llama.cpp's "
          "gguf_convert_endian.py turns one into the other)");
    if (version < 2 || version > 3)
      fail(fmt::format("GGUF version {} is not read; expected version 2 or 3", version));
    header_.version_ = version;
  }

  void read_key() {
    const std::string key(take_text(kLongestKey, "a key"));
    if (key.empty()) fail("a key is empty");
    const std::string what = fmt::format("the key \"{}\"", printable(key));
    GgufValue value{.type = take_type(what), .item_type = {}, .count = 1, .bytes = {}};
    read_value(value, what);
    if (!header_.values_.emplace(key, value).second) fail(fmt::format("{} stands twice", what));
  }

  GgufValueType take_type(const std::string& what) {
    const auto number = take<uint32_t>(what);
    if (number > static_cast<uint32_t>(GgufValueType::f64))
      fail(fmt::format("{} has a value of the unknown type {}", what, number));
    return static_cast<GgufValueType>(number);
  }

  void read_value(GgufValue& value, const std::string& what) {
    switch (value.type) {
      case GgufValueType::text: {
        const std::string_view text = take_text(left(), fmt::format("the string of {}", what));
        value.bytes = std::as_bytes(std::span(text));
        break;
      }
      case GgufValueType::array: {
        value.item_type = take_type(what);
        value.count = take<uint64_t>(what);
        const uint64_t begin = at_;
        skip_items(value.item_type, value.count, what, 1);
        value.bytes = file_.subspan(begin, at_ - begin);
        break;
      }
      default:
        value.bytes = take_scalars(value.type, 1, what);
    }
  }

  /// Goes past the items of an array, which it checks.
  void skip_items(GgufValueType type, uint64_t count, const std::string& what, int depth) {
    if (type == GgufValueType::text) {
      check_items(count, 8, what);
      for (uint64_t i = 0; i < count; ++i) take_text(left(), fmt::format("a string of {}", what));
    } else if (type == GgufValueType::array) {
      if (depth == kDeepestArray)
        fail(fmt::format("{} has arrays within arrays, deeper than {}", what, kDeepestArray));
      check_items(count, 12, what);
      for (uint64_t i = 0; i < count; ++i) {
        const GgufValueType inner = take_type(what);
        const auto items = take<uint64_t>(what);
        skip_items(inner, items, what, depth + 1);
      }
    } else {
      take_scalars(type, count, what);
    }
  }

  void check_items(uint64_t count, uint64_t least_bytes, const std::string& what) const {
    if (count > left() / least_bytes)
      fail(fmt::format("{} has an array with a length of {}, which goes beyond the end of the file",
                       what, count));
  }

  std::span<const std::byte> take_scalars(GgufValueType type, uint64_t count,
                                          const std::string& what) {
    const uint64_t width = width_of(type);
    check_items(count, width, what);
    const auto bytes = take_bytes(count * width, what);
    if (type == GgufValueType::boolean &&
        std::ranges::any_of(bytes, [](std::byte b) { return b > std::byte{1}; }))
      fail(fmt::format("{} has a truth value that is neither 0 nor 1", what));
    return bytes;
  }

  void read_alignment() {
    const auto alignment = header_.integer(kAlignmentKey);
    if (!alignment) return;
    if (*alignment < 1 || !std::has_single_bit(static_cast<uint64_t>(*alignment)) ||
        *alignment > int64_t{1} << 30)
      fail(fmt::format("the alignment ({}) is {}; expected a power of two up to 2^30",
                       kAlignmentKey, *alignment));
    header_.alignment_ = static_cast<uint64_t>(*alignment);
  }

  void read_tensor() {
    GgufEntry entry;
    entry.name = take_text(kLongestName, "the name of a tensor");
    if (entry.name.empty()) fail("a tensor has an empty name");
    const std::string what = fmt::format("tensor \"{}\"", printable(entry.name));
    const auto rank = take<uint32_t>(what);
    if (rank < 1 || rank > kHighestRank)
      fail(fmt::format("{} has {} dimensions; expected 1 to {}", what, rank, kHighestRank));
    // Innermost first, in the file.
    uint64_t count = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      const auto dim = take<uint64_t>(what);
      if (dim < 1 || dim >> 62 != 0 || __builtin_mul_overflow(count, dim, &count) ||
          count >> 62 != 0)
        fail(fmt::format("{} has a dimension of {}, with which its size is 0 or overflows", what,
                         dim));
      entry.dims.insert(entry.dims.begin(), static_cast<int64_t>(dim));
    }
    const auto number = take<uint32_t>(what);
    entry.stored = find_gguf_type(number);
    if (!entry.stored)
      fail(fmt::format("{} is of the type number {}, which this program does not know", what,
                       number));
    entry.type = entry.stored->name;
    entry.dtype = entry.stored->dtype;
    entry.begin = take<uint64_t>(what);
    entry.end = entry.begin + bytes_of(entry, count, what);
    if (entry.begin % header_.alignment_ != 0)
      fail(fmt::format("{} has the offset {}, which the alignment of {} does not divide", what,
                       entry.begin, header_.alignment_));
    if (entry.end < entry.begin)
      fail(fmt::format("{} has the offset {}, which goes beyond the end of the file", what,
                       entry.begin));
    header_.entries_.push_back(std::move(entry));
  }

  uint64_t bytes_of(const GgufEntry& entry, uint64_t count, const std::string& what) const {
    const auto block = static_cast<uint64_t>(entry.stored->block);
    if (static_cast<uint64_t>(entry.dims.back()) % block != 0)
      fail(fmt::format("{} has rows of {} elements, which are not whole blocks of {} ({})", what,
                       entry.dims.back(), block, entry.type));
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(count / block, static_cast<uint64_t>(entry.stored->bytes), &bytes))
      fail(fmt::format("{} has shape {}, whose size overflows", what, entry.shape_text()));
    return bytes;
  }

  void check_names() const {
    std::vector<std::string_view> names;
    names.reserve(header_.entries_.size());
    for (const GgufEntry& entry : header_.entries_) names.push_back(entry.name);
    std::ranges::sort(names);
    if (const auto twice = std::ranges::adjacent_find(names); twice != names.end())
      fail(fmt::format("tensor \"{}\" stands twice", printable(*twice)));
  }

  /// Tensors follow one another, each at the next multiple of the alignment.
  void check_layout() {
    auto& entries = header_.entries_;
    std::ranges::sort(entries, {}, [](const GgufEntry& entry) {
      return std::tuple(entry.begin, entry.end, std::string_view(entry.name));
    });
    const uint64_t mask = header_.alignment_ - 1;
    const uint64_t begin = std::min<uint64_t>((at_ + mask) & ~mask, file_.size());
    header_.data_begin_ = begin;
    const uint64_t bytes = file_.size() - begin;
    uint64_t position = 0;
    const GgufEntry* previous = nullptr;
    for (const GgufEntry& entry : entries) {
      const std::string what = fmt::format("tensor \"{}\"", printable(entry.name));
      if (entry.end > bytes)
        fail(fmt::format(
            "{} ends at byte {} of the data, beyond the end of the file, whose data has "
            "{} bytes; it may be cut short",
            what, entry.end, bytes));
      if (previous && entry.begin < previous->end)
        fail(fmt::format("{} begins at the offset {} and overlaps tensor \"{}\", which ends at {}",
                         what, entry.begin, printable(previous->name), previous->end));
      if (entry.begin != position)
        fail(fmt::format("{} has the offset {} and leaves a hole after byte {}", what, entry.begin,
                         position));
      position = (entry.end + mask) & ~mask;
      previous = &entry;
    }
  }

  std::span<const std::byte> file_;
  uint64_t at_ = 0;
  GgufHeader header_;
};

GgufHeader GgufHeader::parse(std::span<const std::byte> file, std::string_view source) {
  return GgufReader(file, source).read();
}

}  // namespace mixtral
