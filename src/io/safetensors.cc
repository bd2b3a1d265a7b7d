#include "io/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "io/convert.h"
#include "io/git_lfs.h"
#include "io/json.h"

namespace mixtral {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit
constexpr size_t kMostTensors = 262'144;
constexpr uint64_t kMostValues = 10 * kMostTensors;  // of the header's JSON
constexpr size_t kLongestName = 1024;
constexpr size_t kHighestRank = 32;

struct TypeInfo {
  std::string_view name;
  uint64_t bits;
  std::optional<Dtype> dtype;
};

// Every type of the format; those without a Dtype can be listed but not read.
constexpr TypeInfo kTypes[] = {
    {"F32", 32, Dtype::f32},
    {"BF16", 16, Dtype::bf16},
    {"F16", 16, Dtype::f16},
    {"F64", 64, Dtype::f64},
    {"I64", 64, Dtype::i64},
    {"I32", 32, Dtype::i32},
    {"U8", 8, Dtype::u8},
    {"I16", 16, std::nullopt},
    {"I8", 8, std::nullopt},
    {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},
    {"U64", 64, std::nullopt},
    {"BOOL", 8, std::nullopt},
    {"C64", 64, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},
};

std::string dims_text(const std::vector<int64_t>& dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

// Reads the value of one tensor's key in the header.
class EntryReader {
 public:
  EntryReader(const std::string& name, const Json& json, std::string_view source)
      : json_(json), where_(fmt::format("{}: tensor \"{}\"", source, printable(name))) {
    entry_.name = name;
    if (name.empty()) fail("has an empty name");
    if (name.size() > kLongestName)
      fail(fmt::format("has a name of {} bytes; at most {} are accepted", name.size(),
                       kLongestName));
  }

  SafetensorsEntry read() {
    if (!json_.is_object()) fail("is not described by an object");
    for (const auto& [key, value] : json_.members())
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        fail(fmt::format("has an unknown key \"{}\"", printable(key)));
    const uint64_t bits = read_type();
    const uint64_t count = read_shape();
    read_offsets();
    uint64_t total = 0;
    if (__builtin_mul_overflow(count, bits, &total))
      fail(fmt::format("has shape {}, whose size overflows", dims_text(entry_.dims)));
    if (total % 8 != 0)
      fail(fmt::format("of type {} and shape {} does not fill whole bytes", entry_.type,
                       dims_text(entry_.dims)));
    if (total / 8 != entry_.bytes())
      fail(fmt::format("of type {} and shape {} must have {} bytes, but data_offsets hold {}",
                       entry_.type, dims_text(entry_.dims), total / 8, entry_.bytes()));
    return std::move(entry_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(fmt::format("{} {}", where_, what));
  }

  const Json& member(std::string_view key) const {
    const Json* value = json_.find(key);
    if (!value) fail(fmt::format("lacks the key \"{}\"", key));
    return *value;
  }

  // Bits an element.
  uint64_t read_type() {
    const Json& value = member("dtype");
    if (!value.is_string()) fail("has a dtype that is not a string");
    entry_.type = value.as_string();
    const auto* type = std::ranges::find(kTypes, entry_.type, &TypeInfo::name);
    if (type == std::end(kTypes))
      fail(fmt::format("has the unknown dtype \"{}\"", printable(entry_.type)));
    entry_.dtype = type->dtype;
    return type->bits;
  }

  // A number of the header: whole, not negative, below 2^63.
  uint64_t read_count(const Json& value, std::string_view what) const {
    if (!value.is_integer() || value.as_int() < 0)
      fail(fmt::format("has a {} that is not a whole number from 0 to 2^63 - 1", what));
    return static_cast<uint64_t>(value.as_int());
  }

  // The number of elements.
  uint64_t read_shape() {
    const Json& value = member("shape");
    if (!value.is_array()) fail("has a shape that is not an array");
    if (value.items().size() > kHighestRank)
      fail(fmt::format("has {} dimensions; at most {} are accepted", value.items().size(),
                       kHighestRank));
    int64_t count = 1;
    for (const Json& item : value.items()) {
      const auto dim = static_cast<int64_t>(read_count(item, "dimension"));
      entry_.dims.push_back(dim);
      if (__builtin_mul_overflow(count, dim, &count))
        fail(fmt::format("has shape {}..., whose size overflows", dims_text(entry_.dims)));
    }
    return static_cast<uint64_t>(count);
  }

  void read_offsets() {
    const Json& value = member("data_offsets");
    if (!value.is_array() || value.items().size() != 2)
      fail("has data_offsets that are not a pair [begin, end]");
    entry_.begin = read_count(value.items()[0], "data offset");
    entry_.end = read_count(value.items()[1], "data offset");
    if (entry_.begin > entry_.end)
      fail(fmt::format("has data_offsets [{}, {}] that run backwards", entry_.begin, entry_.end));
  }

  const Json& json_;
  std::string where_;
  SafetensorsEntry entry_;
};

std::map<std::string, std::string> read_metadata(const Json& json, std::string_view source) {
  std::map<std::string, std::string> metadata;
  if (json.is_null()) return metadata;  // as MLX writes it when there is nothing to say
  if (!json.is_object())
    throw Error(fmt::format("{}: __metadata__ must be an object of strings", source));
  for (const auto& [key, value] : json.members()) {
    if (!value.is_string())
      throw Error(fmt::format("{}: __metadata__ must hold only strings; \"{}\" is not one", source,
                              printable(key)));
    metadata.emplace(key, value.as_string());
  }
  return metadata;
}

// The tensors must cover the data section exactly once, in some order.
void check_layout(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes,
                  std::string_view source) {
  uint64_t position = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const auto& entry : entries) {
    const auto where = [&] {
      return fmt::format("{}: tensor \"{}\"", source, printable(entry.name));
    };
    if (entry.end > data_bytes)
      throw Error(
          fmt::format("{} ends at byte {} of the data, which has only {} bytes; the file "
                      "may be cut short",
                      where(), entry.end, data_bytes));
    if (entry.begin < position)
      throw Error(fmt::format("{} begins at byte {} and overlaps tensor \"{}\", which ends at {}",
                              where(), entry.begin, printable(previous->name), position));
    if (entry.begin > position)
      throw Error(fmt::format("{} begins at byte {} and leaves a hole after byte {}", where(),
                              entry.begin, position));
    position = entry.end;
    previous = &entry;
  }
  if (position != data_bytes)
    throw Error(fmt::format("{}: {} bytes follow the last tensor", source, data_bytes - position));
}

}  // namespace

SafetensorsHeader SafetensorsHeader::parse(std::span<const std::byte> file,
                                           std::string_view source) {
  if (file.size() < kLengthBytes)
    throw Error(
        fmt::format("{}: not a safetensors file: {} bytes are too few for the header's length",
                    source, file.size()));
  refuse_git_lfs_pointer({reinterpret_cast<const char*>(file.data()), file.size()}, source);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kLongestHeader)
    throw Error(
        fmt::format("{}: not a safetensors file: its header would have {} bytes; at most {} are "
                    "accepted",
                    source, length, kLongestHeader));
  if (length > file.size() - kLengthBytes)
    throw Error(fmt::format(
        "{}: the header's {} bytes run past the end of the file, which has {}; it may be cut short",
        source, length, file.size()));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!text.starts_with('{'))
    throw Error(
        fmt::format("{}: not a safetensors file: its header does not start with '{{'", source));
  const Json json = Json::parse(
      text, source,
      {.bytes = kLongestHeader, .depth = 4, .values = kMostValues, .items = 2 * kHighestRank});

  SafetensorsHeader header;
  header.data_begin = kLengthBytes + length;
  if (json.members().size() > kMostTensors)
    throw Error(fmt::format("{}: {} tensors; at most {} are accepted", source,
                            json.members().size(), kMostTensors));
  header.entries.reserve(json.members().size());
  for (const auto& [name, value] : json.members()) {
    if (name == "__metadata__")
      header.metadata = read_metadata(value, source);
    else
      header.entries.push_back(EntryReader(name, value, source).read());
  }
  std::ranges::sort(header.entries, {}, [](const SafetensorsEntry& entry) {
    return std::tuple(entry.begin, entry.end, std::string_view(entry.name));
  });
  check_layout(header.entries, file.size() - header.data_begin, source);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), header_(SafetensorsHeader::parse(file_.bytes(), path.string())) {
  index_.reserve(header_.entries.size());
  for (size_t i = 0; i < header_.entries.size(); ++i) index_.emplace(header_.entries[i].name, i);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.entries[found->second];
}

const SafetensorsEntry& SafetensorsFile::at(std::string_view name) const {
  if (const auto* entry = find(name)) return *entry;
  throw Error(fmt::format("{}: there is no tensor \"{}\"", path().string(), printable(name)));
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  return file_.bytes().subspan(header_.data_begin + entry.begin, entry.bytes());
}

namespace {

Dtype usable_dtype(const SafetensorsEntry& entry, const std::filesystem::path& path) {
  if (entry.dtype) return *entry.dtype;
  throw Error(fmt::format(
      "{}: tensor \"{}\" has dtype {}, which cannot be computed with; convert the file to F32, "
      "BF16 or F16",
      path.string(), printable(entry.name), entry.type));
}

}  // namespace

Tensor SafetensorsFile::view(std::string_view name) const {
  const SafetensorsEntry& entry = at(name);
  const Dtype dtype = usable_dtype(entry, path());
  const auto where = [&] {
    return fmt::format("{}: tensor \"{}\"", path().string(), printable(name));
  };
  const auto& dims = entry.dims;
  if (dims.size() > static_cast<size_t>(Shape::kMaxRank))
    throw Error(fmt::format("{} has shape {}; at most {} dimensions can be used", where(),
                            entry.shape_text(), Shape::kMaxRank));
  // Nothing writes through a view of a file: the mapping is read-only.
  auto* data = const_cast<std::byte*>(bytes(entry).data());
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(dtype)) != 0)
    throw Error(fmt::format("{} is not aligned to its elements and must be copied", where()));
  const Shape shape = dims.empty()       ? Shape{}
                      : dims.size() == 1 ? Shape{dims[0]}
                      : dims.size() == 2 ? Shape{dims[0], dims[1]}
                      : dims.size() == 3 ? Shape{dims[0], dims[1], dims[2]}
                                         : Shape{dims[0], dims[1], dims[2], dims[3]};
  return {data, shape, dtype};
}

void SafetensorsFile::read_into(std::string_view name, const Tensor& to) const {
  const SafetensorsEntry& entry = at(name);
  bool same = entry.dims.size() == static_cast<size_t>(to.rank());
  for (int i = 0; same && i < to.rank(); ++i)
    same = entry.dims[static_cast<size_t>(i)] == to.dim(i);
  if (!same)
    throw Error(fmt::format("{}: tensor \"{}\" has shape {}, but {} is needed", path().string(),
                            printable(name), entry.shape_text(), to.shape().to_string()));
  read(name, 0, to);
}

void SafetensorsFile::read(std::string_view name, int64_t first, const Tensor& to) const {
  const SafetensorsEntry& entry = at(name);
  const Dtype dtype = usable_dtype(entry, path());
  const int64_t count = to.numel();
  CHECK(first >= 0 && count <= entry.numel() - first, "elements outside a tensor");
  if (!convertible(dtype, to.dtype()))
    throw Error(fmt::format("{}: tensor \"{}\" has dtype {}, but {} is needed", path().string(),
                            printable(name), entry.type, to_string(to.dtype())));
  convert_elements(bytes(entry).data() + first * size_of(dtype), dtype,
                   static_cast<std::byte*>(to.data()), to.dtype(), count);
}

}  // namespace mixtral
