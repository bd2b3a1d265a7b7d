#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mixtral {

/// One field of a protobuf message as it stands on the wire.
struct ProtoField {
  enum class Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
  uint32_t number = 0;
  Wire wire = Wire::varint;
  uint64_t value = 0;     // varint, fixed64, fixed32
  std::string_view data;  // bytes: a view into the message

  // Each throws Error naming `context` and the field unless the wire type and range fit.
  bool as_bool(std::string_view context) const;
  uint64_t as_enum(std::string_view context, uint64_t least, uint64_t most) const;
  float as_float(std::string_view context) const;
  std::string_view as_bytes(std::string_view context) const;
};

/// Walks the fields of one protobuf message in order, reading nothing past its end. The encoding is
/// that of protobuf.dev/programming-guides/encoding; groups, which no format read here uses, are
/// refused. Errors name `context` (the file and the message) and the byte where reading stopped.
class ProtoReader {
 public:
  ProtoReader(std::string_view message, std::string_view context)
      : message_(message), context_(context) {}

  /// The next field into `field`; false at the end. Throws Error where the message is malformed.
  bool next(ProtoField& field);

 private:
  uint64_t varint();
  uint64_t fixed(size_t bytes);
  [[noreturn]] void fail(std::string_view reason) const;

  std::string_view message_;
  std::string context_;
  size_t at_ = 0;
};

/// Appends fields to a message.
class ProtoWriter {
 public:
  void varint(uint32_t number, uint64_t value);
  void float32(uint32_t number, float value);
  void float64(uint32_t number, double value);
  void bytes(uint32_t number, std::string_view data);
  const std::string& message() const { return message_; }

 private:
  void raw_varint(uint64_t value);
  std::string message_;
};

}  // namespace mixtral
