#include "io/gguf.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "base/printable.h"

namespace mixtral {
namespace {

using enum GgufValueType;

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

/// The integer of a scalar, or nothing where it is none or does not fit.
std::optional<int64_t> integer_of(GgufValueType type, const std::byte* bytes) {
  switch (type) {
    case u8:
      return load<uint8_t>(bytes);
    case i8:
      return load<int8_t>(bytes);
    case u16:
      return load<uint16_t>(bytes);
    case i16:
      return load<int16_t>(bytes);
    case u32:
      return load<uint32_t>(bytes);
    case i32:
      return load<int32_t>(bytes);
    case u64: {
      const auto value = load<uint64_t>(bytes);
      return value >> 63 != 0 ? std::nullopt : std::optional(static_cast<int64_t>(value));
    }
    case i64:
      return load<int64_t>(bytes);
    default:
      return std::nullopt;
  }
}

std::optional<double> number_of(GgufValueType type, const std::byte* bytes) {
  if (type == f32) return static_cast<double>(load<float>(bytes));
  if (type == f64) return load<double>(bytes);
  if (type == u64) return static_cast<double>(load<uint64_t>(bytes));
  if (const auto value = integer_of(type, bytes)) return static_cast<double>(*value);
  return std::nullopt;
}

std::string_view letters(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

uint64_t width_of(GgufValueType type) {
  switch (type) {
    case u8:
    case i8:
    case boolean:
      return 1;
    case u16:
    case i16:
      return 2;
    case u32:
    case i32:
    case f32:
      return 4;
    default:
      return 8;
  }
}

std::string_view to_string(GgufValueType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",   "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "text", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

std::string GgufHeader::where(std::string_view key) const {
  return fmt::format("{}: the key \"{}\"", source_, printable(key));
}

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

void GgufHeader::mismatch(std::string_view key, std::string_view expected) const {
  const GgufValue& value = *find(key);
  throw Error(fmt::format("{}: expected {}, found {}", where(key), expected,
                          value.type == array
                              ? fmt::format("an array of {}", to_string(value.item_type))
                              : fmt::format("a value of the type {}", to_string(value.type))));
}

const GgufValue* GgufHeader::find_array(std::string_view key, std::string_view expected) const {
  const GgufValue* value = find(key);
  if (value && value->type != array) mismatch(key, expected);
  return value;
}

std::optional<int64_t> GgufHeader::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto result = integer_of(value->type, value->bytes.data());
  if (!result) mismatch(key, "a whole number below 2^63");
  return result;
}

std::optional<double> GgufHeader::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto result = number_of(value->type, value->bytes.data());
  if (!result) mismatch(key, "a number");
  return result;
}

std::optional<bool> GgufHeader::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (value->type != GgufValueType::boolean) mismatch(key, "true or false");
  return value->bytes[0] != std::byte{0};
}

std::optional<std::string_view> GgufHeader::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (value->type != GgufValueType::text) mismatch(key, "a text");
  return letters(value->bytes);
}

std::optional<std::vector<std::string_view>> GgufHeader::texts(std::string_view key) const {
  const GgufValue* value = find_array(key, "an array of texts");
  if (!value) return std::nullopt;
  if (value->item_type != GgufValueType::text) mismatch(key, "an array of texts");
  std::vector<std::string_view> result;
  result.reserve(value->count);
  for (auto rest = value->bytes; result.size() < value->count;) {
    const auto length = static_cast<size_t>(load<uint64_t>(rest.data()));
    result.push_back(letters(rest.subspan(8, length)));
    rest = rest.subspan(8 + length);
  }
  return result;
}

std::optional<std::vector<float>> GgufHeader::floats(std::string_view key) const {
  const GgufValue* value = find_array(key, "an array of numbers");
  if (!value) return std::nullopt;
  std::vector<float> result;
  result.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto item =
        number_of(value->item_type, value->bytes.data() + i * width_of(value->item_type));
    if (!item) mismatch(key, "an array of numbers");
    result.push_back(static_cast<float>(*item));
  }
  return result;
}

std::optional<std::vector<int64_t>> GgufHeader::integers(std::string_view key) const {
  const GgufValue* value = find_array(key, "an array of whole numbers");
  if (!value) return std::nullopt;
  std::vector<int64_t> result;
  result.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto item =
        integer_of(value->item_type, value->bytes.data() + i * width_of(value->item_type));
    if (!item) mismatch(key, "an array of whole numbers");
    result.push_back(*item);
  }
  return result;
}

GgufFile::GgufFile(const std::filesystem::path& path)
    : file_(path), header_(GgufHeader::parse(file_.bytes(), path.string())) {
  const auto& entries = header_.entries();
  index_.reserve(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) index_.emplace(entries[i].name, i);
}

const GgufEntry* GgufFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.entries()[found->second];
}

std::span<const std::byte> GgufFile::bytes(const GgufEntry& entry) const {
  return file_.bytes().subspan(header_.data_begin() + entry.begin, entry.end - entry.begin);
}

bool is_gguf_file(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  try {
    return MappedFile(path).text().starts_with("GGUF");
  } catch (const Error&) {
    return false;
  }
}

}  // namespace mixtral
