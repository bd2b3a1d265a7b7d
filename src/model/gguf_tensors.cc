#include "model/gguf_tensors.h"

#include <fmt/format.h>

#include <cctype>
#include <cstring>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "io/convert.h"
#include "ops/weight.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostParts = 10'000;
constexpr int64_t kDecodedAtOnce = int64_t{1} << 16;  // elements; whole blocks of every format

std::optional<ops::WeightFormat> format_of(const GgufType& type) {
  std::string name(type.name);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto format = ops::find_weight_format(name);
  return format && !format->dense() ? format : std::nullopt;
}

std::string part_name(const std::string& stem, int64_t part, int64_t count) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", stem, part, count);
}

/// "NAME" of "NAME-00001-of-00003.gguf", where the file is named so.
std::string stem_of(const fs::path& path, int64_t part, int64_t count) {
  const std::string name = path.filename().string();
  const std::string ending = part_name("", part, count);
  return name.ends_with(ending) ? name.substr(0, name.size() - ending.size()) : std::string();
}

}  // namespace

GgufTensors::GgufTensors(const fs::path& path) {
  files_.push_back(std::make_unique<GgufFile>(path));
  const int64_t count = header().integer("split.count").value_or(1);
  if (count > 1) {
    open_parts(count);
    return;
  }
  add(*files_.front());
}

void GgufTensors::open_parts(int64_t count) {
  const fs::path first = path();
  const auto part_of = [](const GgufFile& file) {
    return file.header().integer("split.no").value_or(0);
  };
  if (count > kMostParts)
    throw Error(fmt::format("{}: at most {} parts are accepted", header().where("split.count"),
                            kMostParts));
  if (const int64_t part = part_of(*files_.front()); part != 0) {
    const std::string stem = stem_of(first, part + 1, count);
    throw Error(fmt::format(
        "{}: this is part {} of a model split into {} files; name the first "
        "one, {}",
        first.string(), part + 1, count, part_name(stem.empty() ? "NAME" : stem, 1, count)));
  }
  const std::string stem = stem_of(first, 1, count);
  if (stem.empty())
    throw Error(
        fmt::format("{}: the model is split into {} files, which are found by their names; "
                    "this one must be called {}",
                    first.string(), count, part_name("NAME", 1, count)));
  for (int64_t part = 1; part < count; ++part) {
    const fs::path file = first.parent_path() / part_name(stem, part + 1, count);
    std::error_code error;
    if (!fs::exists(file, error))
      throw Error(
          fmt::format("{}: the model is split into {} files, but {} is not beside it; the "
                      "download may not be complete",
                      first.string(), count, file.filename().string()));
    files_.push_back(std::make_unique<GgufFile>(file));
    if (part_of(*files_.back()) != part)
      throw Error(fmt::format("{}: by its key split.no it is part {}, but by its name part {}",
                              file.string(), part_of(*files_.back()) + 1, part + 1));
  }
  for (const auto& file : files_) add(*file);
  const auto tensors = header().integer("split.tensors.count");
  if (tensors && static_cast<uint64_t>(*tensors) != names_.size())
    throw Error(fmt::format("{}: the parts have {} tensors, but split.tensors.count says {}",
                            first.string(), names_.size(), *tensors));
}

void GgufTensors::add(const GgufFile& file) {
  for (const GgufEntry& stored : file.header().entries()) {
    Place place{stored, &stored, &file};
    if (!stored.dtype) {
      const auto format = format_of(*stored.stored);
      place.entry.coded = format.has_value();
      if (format) place.entry.format = format->name();
    }
    if (!places_.emplace(stored.name, std::move(place)).second)
      throw Error(fmt::format("{}: tensor \"{}\" is also in another part", file.path().string(),
                              printable(stored.name)));
    names_.push_back(stored.name);
  }
}

const TensorEntry* GgufTensors::find(std::string_view name) const {
  const auto found = places_.find(std::string(name));
  return found == places_.end() ? nullptr : &found->second.entry;
}

const GgufTensors::Place& GgufTensors::place(std::string_view name) const {
  const auto found = places_.find(std::string(name));
  if (found == places_.end())
    throw Error(fmt::format("{}: there is no tensor \"{}\"", path().string(), printable(name)));
  return found->second;
}

const fs::path& GgufTensors::file_of(std::string_view name) const {
  return place(name).file->path();
}

std::span<const std::byte> GgufTensors::raw(std::string_view name) const {
  const Place& at = place(name);
  return at.file->bytes(*at.stored);
}

std::optional<TensorSource::FilePlace> GgufTensors::file_place(std::string_view name) const {
  const Place& at = place(name);
  return FilePlace{at.file->path(), at.file->header().data_begin() + at.stored->begin,
                   at.stored->end - at.stored->begin};
}

void GgufTensors::read(std::string_view name, int64_t first, const Tensor& to) const {
  const Place& at = place(name);
  const int64_t count = to.numel();
  CHECK(0 <= first && count <= at.entry.numel() - first, std::string(name));
  const std::byte* bytes = at.file->bytes(*at.stored).data();
  auto* out = static_cast<std::byte*>(to.data());
  if (at.entry.dtype) {
    if (!convertible(*at.entry.dtype, to.dtype()))
      throw Error(fmt::format("{}: tensor \"{}\" has the type {}, which does not convert to {}",
                              at.file->path().string(), printable(name), at.entry.type,
                              to_string(to.dtype())));
    convert_elements(bytes + first * size_of(*at.entry.dtype), *at.entry.dtype, out, to.dtype(),
                     count);
    return;
  }
  if (!at.entry.coded)
    throw Error(fmt::format("{}: tensor \"{}\" has the type {}, which is not read",
                            at.file->path().string(), printable(name), at.entry.type));
  const GgufType& type = *at.stored->stored;
  CHECK(first % type.block == 0 && count % type.block == 0, std::string(name));
  const ops::WeightFormat format = *ops::find_weight_format(at.entry.format);
  std::vector<float> values;
  for (int64_t done = 0; done < count; done += kDecodedAtOnce) {
    values.resize(static_cast<size_t>(std::min(kDecodedAtOnce, count - done)));
    // Nothing writes through what unpacking is given: the mapping is read-only.
    auto* codes = const_cast<std::byte*>(bytes + (first + done) / type.block * type.bytes);
    format.row().unpack({.codes = codes}, values);
    convert_elements(reinterpret_cast<const std::byte*>(values.data()), Dtype::f32,
                     out + done * size_of(to.dtype()), to.dtype(),
                     static_cast<int64_t>(values.size()));
  }
}

bool GgufTensors::has_finite_scales(std::string_view name) const {
  return ops::has_finite_scales(*ops::find_weight_format(place(name).entry.format), raw(name));
}

void GgufTensors::read_codes(std::string_view name, int64_t first_row,
                             std::span<const Tensor> pieces) const {
  const Place& at = place(name);
  CHECK(at.entry.coded && !pieces.empty(), std::string(name));
  const GgufType& type = *at.stored->stored;
  const int64_t row_bytes = at.entry.dims.back() / type.block * type.bytes;
  const Tensor& codes = pieces.front();
  CHECK(codes.dim(1) == row_bytes, std::string(name));
  const auto bytes =
      at.file->bytes(*at.stored)
          .subspan(static_cast<size_t>(first_row * row_bytes), static_cast<size_t>(codes.bytes()));
  std::memcpy(codes.data(), bytes.data(), bytes.size());
}

}  // namespace mixtral
