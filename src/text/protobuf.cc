#include "text/protobuf.h"

#include <fmt/format.h>

#include <bit>

#include "base/error.h"

namespace mixtral {
namespace {

[[noreturn]] void wrong_wire(std::string_view context, const ProtoField& field,
                             std::string_view expected) {
  throw Error(fmt::format("{}: field {} should be {} but has wire type {}; the file is damaged",
                          context, field.number, expected, static_cast<int>(field.wire)));
}

}  // namespace

bool ProtoField::as_bool(std::string_view context) const {
  if (wire != Wire::varint) wrong_wire(context, *this, "a truth value");
  return value != 0;
}

uint64_t ProtoField::as_enum(std::string_view context, uint64_t least, uint64_t most) const {
  if (wire != Wire::varint) wrong_wire(context, *this, "a number");
  if (value < least || value > most) {
    throw Error(
        fmt::format("{}: field {} is {}, expected {} to {}", context, number, value, least, most));
  }
  return value;
}

float ProtoField::as_float(std::string_view context) const {
  if (wire != Wire::fixed32) wrong_wire(context, *this, "a 32-bit float");
  return std::bit_cast<float>(static_cast<uint32_t>(value));
}

std::string_view ProtoField::as_bytes(std::string_view context) const {
  if (wire != Wire::bytes) wrong_wire(context, *this, "text or a message");
  return data;
}

void ProtoReader::fail(std::string_view reason) const {
  throw Error(fmt::format("{}: byte {}: {}; the file is damaged or not a SentencePiece model",
                          context_, at_, reason));
}

uint64_t ProtoReader::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (at_ == message_.size()) fail("the message ends inside a number");
    const auto byte = static_cast<unsigned char>(message_[at_++]);
    if (shift == 63 && byte > 1) fail("a number has more than 64 bits");
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  fail("a number has more than 10 bytes");
}

uint64_t ProtoReader::fixed(size_t bytes) {
  if (message_.size() - at_ < bytes) fail("the message ends inside a fixed-width value");
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value |= uint64_t{static_cast<unsigned char>(message_[at_ + i])} << (8 * i);
  }
  at_ += bytes;
  return value;
}

bool ProtoReader::next(ProtoField& field) {
  if (at_ == message_.size()) return false;
  const uint64_t tag = varint();
  if (tag >> 3 == 0 || tag >> 3 > (1u << 29) - 1) fail("a field number is out of range");
  field =
      ProtoField{static_cast<uint32_t>(tag >> 3), static_cast<ProtoField::Wire>(tag & 7), 0, {}};
  switch (tag & 7) {
    case 0:
      field.value = varint();
      break;
    case 1:
      field.value = fixed(8);
      break;
    case 5:
      field.value = fixed(4);
      break;
    case 2: {
      const uint64_t length = varint();
      if (length > message_.size() - at_) {
        fail(fmt::format("a field of {} bytes does not fit in the {} that are left", length,
                         message_.size() - at_));
      }
      field.data = message_.substr(at_, length);
      at_ += length;
      break;
    }
    default:
      fail(fmt::format("wire type {} is not supported", tag & 7));
  }
  return true;
}

void ProtoWriter::raw_varint(uint64_t value) {
  while (value >= 0x80) {
    message_ += static_cast<char>(value | 0x80);
    value >>= 7;
  }
  message_ += static_cast<char>(value);
}

void ProtoWriter::varint(uint32_t number, uint64_t value) {
  raw_varint(uint64_t{number} << 3);
  raw_varint(value);
}

void ProtoWriter::float32(uint32_t number, float value) {
  raw_varint(uint64_t{number} << 3 | 5);
  const auto bits = std::bit_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) message_ += static_cast<char>(bits >> shift);
}

void ProtoWriter::float64(uint32_t number, double value) {
  raw_varint(uint64_t{number} << 3 | 1);
  const auto bits = std::bit_cast<uint64_t>(value);
  for (int shift = 0; shift < 64; shift += 8) message_ += static_cast<char>(bits >> shift);
}

void ProtoWriter::bytes(uint32_t number, std::string_view data) {
  raw_varint(uint64_t{number} << 3 | 2);
  raw_varint(data.size());
  message_ += data;
}

}  // namespace mixtral
