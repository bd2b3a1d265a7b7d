#include "io/parquet_thrift.h"

#include <limits>

namespace mixtral {
namespace {

constexpr int kDeepestStruct = 32;
// A number that sets a list's size apart: the size itself follows.
constexpr uint64_t kLongList = 15;

ThriftType type_of(uint8_t bits, const ParquetPlace& place) {
  if (bits > static_cast<uint8_t>(ThriftType::uuid))
    place.fail(fmt::format("a value has the unknown Thrift type {}; the file is damaged", bits));
  return static_cast<ThriftType>(bits);
}

bool is_boolean(ThriftType type) { return type == ThriftType::yes || type == ThriftType::no; }

}  // namespace

void ThriftReader::enter() {
  if (++depth_ > kDeepestStruct)
    place_.fail(fmt::format("it is nested deeper than {}", kDeepestStruct));
}

void ThriftReader::expect(bool holds) const {
  if (!holds) place_.fail("a value has another type than Parquet's; the file is damaged");
}

std::string_view ThriftReader::take(uint64_t count) {
  if (count > bytes_.size() - at_)
    place_.fail(fmt::format("{} bytes are needed where {} are left; the file is damaged or cut off",
                            count, bytes_.size() - at_));
  const std::string_view bytes = bytes_.substr(at_, count);
  at_ += count;
  return bytes;
}

uint8_t ThriftReader::byte() { return static_cast<uint8_t>(take(1).front()); }

uint64_t ThriftReader::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const uint8_t bits = byte();
    value |= uint64_t{bits & 0x7FU} << shift;
    if (bits < 0x80) return value;
  }
  place_.fail("a number has more than 64 bits; the file is damaged");
}

int64_t ThriftReader::zigzag() {
  const uint64_t bits = varint();
  return static_cast<int64_t>(bits >> 1 ^ (0 - (bits & 1)));
}

ThriftType ThriftReader::next_field(int& id) {
  const uint8_t head = byte();
  const ThriftType type = type_of(head & 0xF, place_);
  if (type == ThriftType::stop) return type;
  const int64_t next = head >> 4 != 0 ? id + (head >> 4) : zigzag();
  expect(next >= 0 && next <= std::numeric_limits<int16_t>::max());
  id = static_cast<int>(next);
  return type;
}

uint64_t ThriftReader::list_size(ThriftType field, ThriftType item) {
  expect(field == ThriftType::list);
  const uint8_t head = byte();
  const uint64_t size = head >> 4 == kLongList ? varint() : head >> 4;
  expect(size == 0 || type_of(head & 0xF, place_) == item);
  // Each item takes a byte or more.
  if (size > bytes_.size() - at_)
    place_.fail(fmt::format("a list of {} items goes beyond the end; the file is damaged", size));
  return size;
}

int64_t ThriftReader::integer(ThriftType type) {
  if (type == ThriftType::i8) return static_cast<int8_t>(byte());
  expect(type == ThriftType::i16 || type == ThriftType::i32 || type == ThriftType::i64);
  return zigzag();
}

bool ThriftReader::boolean(ThriftType type) const {
  expect(is_boolean(type));
  return type == ThriftType::yes;
}

std::string_view ThriftReader::text(ThriftType type) {
  expect(type == ThriftType::text);
  return take(varint());
}

void ThriftReader::skip_items(ThriftType type, uint64_t count) {
  if (count > bytes_.size() - at_)
    place_.fail(fmt::format("a list of {} items goes beyond the end; the file is damaged", count));
  for (; count > 0; --count) is_boolean(type) ? static_cast<void>(byte()) : skip(type);
}

void ThriftReader::skip(ThriftType type) {
  switch (type) {
    case ThriftType::yes:
    case ThriftType::no:
      return;
    case ThriftType::i8:
      byte();
      return;
    case ThriftType::i16:
    case ThriftType::i32:
    case ThriftType::i64:
      varint();
      return;
    case ThriftType::number:
      take(8);
      return;
    case ThriftType::uuid:
      take(16);
      return;
    case ThriftType::text:
      take(varint());
      return;
    case ThriftType::list:
    case ThriftType::set: {
      enter();
      const uint8_t head = byte();
      const uint64_t size = head >> 4 == kLongList ? varint() : head >> 4;
      skip_items(type_of(head & 0xF, place_), size);
      --depth_;
      return;
    }
    case ThriftType::map: {
      enter();
      const uint64_t size = varint();
      const uint8_t types = size > 0 ? byte() : 0;
      if (size > bytes_.size() - at_) expect(false);
      for (uint64_t i = 0; i < size; ++i) {
        skip_items(type_of(types >> 4, place_), 1);
        skip_items(type_of(types & 0xF, place_), 1);
      }
      --depth_;
      return;
    }
    case ThriftType::structure:
      each_field([](int, ThriftType) { return false; });
      return;
    case ThriftType::stop:
      expect(false);
  }
}

}  // namespace mixtral
