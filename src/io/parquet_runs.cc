// Packed numbers: levels and dictionary indices, and differences.
#include <algorithm>

#include "io/parquet_encoding.h"

namespace mixtral {
namespace {

constexpr uint64_t kLargestBlock = 1 << 20;
constexpr uint64_t kMostGroups = uint64_t{1} << 50;  // more than fit into any page
constexpr std::string_view kCutOff = "a page ends before its values do; the file is damaged";

/// `width` bits from a place on, the lowest first. They must lie within the bytes.
uint64_t unpack(std::string_view bytes, uint64_t bit, int width) {
  uint64_t value = 0;
  size_t at = bit / 8;
  for (int got = -static_cast<int>(bit % 8); got < width; got += 8, ++at) {
    const uint64_t byte = static_cast<uint8_t>(bytes[at]);
    value |= got >= 0 ? byte << got : byte >> -got;
  }
  return width == 64 ? value : value & ((uint64_t{1} << width) - 1);
}

uint64_t take_varint(std::string_view& bytes, const ParquetPlace& place) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (bytes.empty()) place.fail(kCutOff);
    const auto bits = static_cast<uint8_t>(bytes.front());
    bytes.remove_prefix(1);
    value |= uint64_t{bits & 0x7FU} << shift;
    if (bits < 0x80) return value;
  }
  place.fail("a count in a page has more than 64 bits; the file is damaged");
}

}  // namespace

void RunReader::start_run() {
  const uint64_t head = take_varint(bytes_, *place_);
  is_packed_ = (head & 1) != 0;
  if (!is_packed_) {
    left_ = head >> 1;
    const auto size = static_cast<size_t>((width_ + 7) / 8);
    if (bytes_.size() < size) place_->fail(kCutOff);
    repeated_ = width_ == 0 ? 0 : static_cast<uint32_t>(unpack(bytes_, 0, width_));
    bytes_.remove_prefix(size);
    return;
  }
  // Groups of eight numbers take as many bytes as a number has bits. Some writers cut the last
  // group off behind its last number.
  const uint64_t groups = std::min(head >> 1, kMostGroups);
  const auto width = static_cast<uint64_t>(width_);
  packed_ = bytes_.substr(0, std::min<uint64_t>(groups * width, bytes_.size()));
  left_ = width == 0 ? groups * 8 : std::min(groups * 8, packed_.size() * 8 / width);
  bytes_.remove_prefix(packed_.size());
  bit_ = 0;
}

uint32_t RunReader::next() {
  while (left_ == 0) start_run();
  --left_;
  if (!is_packed_) return repeated_;
  const auto value = static_cast<uint32_t>(unpack(packed_, bit_, width_));
  bit_ += static_cast<uint64_t>(width_);
  return value;
}

DeltaReader::DeltaReader(std::string_view bytes, uint64_t most, const ParquetPlace& place)
    : bytes_(bytes), place_(&place) {
  const uint64_t block = take_varint(bytes_, place);
  parts_ = take_varint(bytes_, place);
  count_ = left_ = take_varint(bytes_, place);
  const uint64_t first = take_varint(bytes_, place);
  if (block == 0 || block > kLargestBlock || parts_ == 0 || block % parts_ != 0 ||
      block / parts_ % 8 != 0)
    place.fail(
        fmt::format("differences come in blocks of {} numbers in {} parts, which are no whole "
                    "bytes; the file is damaged",
                    block, parts_));
  if (count_ > most)
    place.fail(fmt::format("a page has {} values, more than its header says; the file is damaged",
                           count_));
  part_size_ = block / parts_;
  next_part_ = parts_;
  value_ = first >> 1 ^ (0 - (first & 1));
}

void DeltaReader::start_part() {
  if (next_part_ == parts_) {
    const uint64_t least = take_varint(bytes_, *place_);
    least_ = least >> 1 ^ (0 - (least & 1));
    if (bytes_.size() < parts_) place_->fail(kCutOff);
    widths_ = bytes_.substr(0, parts_);
    bytes_.remove_prefix(parts_);
    next_part_ = 0;
  }
  width_ = static_cast<uint8_t>(widths_[next_part_++]);
  if (width_ > 64)
    place_->fail(fmt::format("a difference has {} bits; the file is damaged", width_));
  const uint64_t size = part_size_ / 8 * static_cast<uint64_t>(width_);
  if (bytes_.size() < size) place_->fail(kCutOff);
  packed_ = bytes_.substr(0, size);
  bytes_.remove_prefix(size);
  left_in_part_ = part_size_;
  bit_ = 0;
}

int64_t DeltaReader::next() {
  if (left_ == 0) place_->fail(kCutOff);
  if (left_-- == count_) return static_cast<int64_t>(value_);
  if (left_in_part_ == 0) start_part();
  --left_in_part_;
  value_ += least_ + (width_ == 0 ? 0 : unpack(packed_, bit_, width_));
  bit_ += static_cast<uint64_t>(width_);
  return static_cast<int64_t>(value_);
}

std::string_view DeltaReader::rest() const {
  DeltaReader all = *this;
  while (all.left_ > 0) all.next();
  return all.bytes_;
}

}  // namespace mixtral
