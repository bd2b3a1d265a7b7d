#pragma once

#include <cstdint>
#include <string_view>

#include "io/parquet_place.h"

namespace mixtral {

/// Types of Thrift's compact protocol, with their numbers in a file.
enum class ThriftType : uint8_t {
  stop = 0,
  yes = 1,  // a Boolean field stores its value in its type
  no = 2,
  i8 = 3,
  i16 = 4,
  i32 = 5,
  i64 = 6,
  number = 7,
  text = 8,
  list = 9,
  set = 10,
  map = 11,
  structure = 12,
  uuid = 13,
};

/// Reads Thrift's compact protocol
/// (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), in which
/// Parquet's footers and page headers are written. Every count is checked against the bytes that
/// follow, and depth is limited. Throws Error, which begins with the place, for what breaks a rule.
class ThriftReader {
 public:
  ThriftReader(std::string_view bytes, const ParquetPlace& place) : bytes_(bytes), place_(place) {}

  /// Bytes read so far.
  size_t position() const { return at_; }

  /// Reads a structure: calls `take(id, type)` for each field, which reads the field's value and
  /// returns true, or returns false for a field that is to be skipped.
  template <class Take>
  void each_field(const Take& take) {
    enter();
    int id = 0;
    for (ThriftType type; (type = next_field(id)) != ThriftType::stop;)
      if (!take(id, type)) skip(type);
    --depth_;
  }
  /// Reads the value of a list: calls `take()` for each item, which must read it. Throws Error
  /// unless the items are of that type.
  template <class Take>
  void each_item(ThriftType field, ThriftType item, const Take& take) {
    enter();
    for (uint64_t left = list_size(field, item); left > 0; --left) take();
    --depth_;
  }

  // The value of a field, or of a list's item, of such a type. Each throws Error for another type.
  int64_t integer(ThriftType type);
  bool boolean(ThriftType type) const;
  std::string_view text(ThriftType type);

 private:
  void enter();
  ThriftType next_field(int& id);
  uint64_t list_size(ThriftType field, ThriftType item);
  void skip(ThriftType type);
  void skip_items(ThriftType type, uint64_t count);
  void expect(bool holds) const;
  uint8_t byte();
  uint64_t varint();
  int64_t zigzag();
  std::string_view take(uint64_t count);

  std::string_view bytes_;
  const ParquetPlace& place_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace mixtral
