#include "io/gguf_writer.h"

#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/disk_space.h"

namespace mixtral {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they stand");

constexpr uint32_t kVersion = 3;

using Type = GgufValueType;

template <class T>
void append(std::string& to, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  to.append(bytes, sizeof(T));
}

void append_text(std::string& to, std::string_view text) {
  append(to, uint64_t{text.size()});
  to += text;
}

uint64_t aligned(uint64_t bytes) {
  return (bytes + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

std::string header_of(const GgufKeys& keys, const std::vector<PlannedGgufTensor>& plan) {
  std::string header = "GGUF";
  append(header, kVersion);
  append(header, uint64_t{plan.size()});
  append(header, keys.count());
  header += keys.encoded();
  uint64_t offset = 0;
  for (const PlannedGgufTensor& tensor : plan) {
    append_text(header, tensor.name);
    append(header, static_cast<uint32_t>(tensor.dims.size()));
    for (size_t i = tensor.dims.size(); i-- > 0;)
      append(header, static_cast<uint64_t>(tensor.dims[i]));
    append(header, tensor.type);
    append(header, offset);
    offset += aligned(tensor.bytes);
  }
  header.resize(aligned(header.size()), '\0');
  return header;
}

}  // namespace

void GgufKeys::begin(std::string_view key, GgufValueType type) {
  append_text(encoded_, key);
  append(encoded_, static_cast<uint32_t>(type));
  ++count_;
}

void GgufKeys::begin_array(std::string_view key, GgufValueType type, uint64_t count) {
  begin(key, Type::array);
  append(encoded_, static_cast<uint32_t>(type));
  append(encoded_, count);
}

void GgufKeys::add_u32(std::string_view key, uint32_t value) {
  begin(key, Type::u32);
  append(encoded_, value);
}

void GgufKeys::add_u64(std::string_view key, uint64_t value) {
  begin(key, Type::u64);
  append(encoded_, value);
}

void GgufKeys::add_f32(std::string_view key, float value) {
  begin(key, Type::f32);
  append(encoded_, value);
}

void GgufKeys::add_bool(std::string_view key, bool value) {
  begin(key, Type::boolean);
  append(encoded_, static_cast<uint8_t>(value));
}

void GgufKeys::add_text(std::string_view key, std::string_view value) {
  begin(key, Type::text);
  append_text(encoded_, value);
}

void GgufKeys::add_texts(std::string_view key, std::span<const std::string> values) {
  begin_array(key, Type::text, values.size());
  for (const std::string& value : values) append_text(encoded_, value);
}

void GgufKeys::add_f32s(std::string_view key, std::span<const float> values) {
  begin_array(key, Type::f32, values.size());
  for (const float value : values) append(encoded_, value);
}

void GgufKeys::add_i32s(std::string_view key, std::span<const int32_t> values) {
  begin_array(key, Type::i32, values.size());
  for (const int32_t value : values) append(encoded_, value);
}

void GgufKeys::add_copy(std::string_view key, const GgufValue& value) {
  if (value.type == GgufValueType::array)
    begin_array(key, value.item_type, value.count);
  else
    begin(key, value.type);
  if (value.type == GgufValueType::text) append(encoded_, uint64_t{value.bytes.size()});
  encoded_.append(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufKeys& keys,
                       std::vector<PlannedGgufTensor> plan)
    : plan_(std::move(plan)), file_(path) {
  const std::string header = header_of(keys, plan_);
  uint64_t bytes = header.size();
  for (const PlannedGgufTensor& tensor : plan_) bytes += aligned(tensor.bytes);
  require_disk_space(path, bytes);
  emit(std::as_bytes(std::span(header)));
}

void GgufWriter::emit(std::span<const std::byte> bytes) {
  file_.write(bytes);
  sum_.update(bytes);
}

void GgufWriter::write(std::span<const std::byte> bytes) {
  CHECK(next_ < plan_.size(), "more tensors than planned");
  const PlannedGgufTensor& tensor = plan_[next_];
  CHECK(bytes.size() <= tensor.bytes - filled_, tensor.name + " has more bytes than planned");
  emit(bytes);
  filled_ += bytes.size();
  if (filled_ < tensor.bytes) return;
  const std::string padding(aligned(filled_) - filled_, '\0');
  emit(std::as_bytes(std::span(padding)));
  filled_ = 0;
  ++next_;
}

FileChecksum GgufWriter::finish() {
  CHECK(next_ == plan_.size(), "fewer tensors than planned");
  file_.commit();
  return sum_.result();
}

}  // namespace mixtral
