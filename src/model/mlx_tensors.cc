#include "model/mlx_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/convert.h"
#include "ops/weight_format.h"

namespace mixtral {
namespace {

constexpr std::string_view kMlxWeight = ".weight", kMlxScales = ".scales", kMlxBiases = ".biases";
constexpr std::array<int64_t, 6> kBits = {2, 3, 4, 5, 6, 8};

MlxQuantization read_setting(const Json& json, MlxQuantization otherwise) {
  MlxQuantization setting = otherwise;
  const auto read = [&](const char* key, int64_t& field) {
    if (const Json* value = json.find(key); value && !value->is_null()) field = value->as_int();
  };
  read("bits", setting.bits);
  read("group_size", setting.group);
  if (std::ranges::find(kBits, setting.bits) == kBits.end())
    throw Error(
        fmt::format("{}: bits is {}; expected 2, 3, 4, 5, 6 or 8", json.where(), setting.bits));
  if (setting.group < 8 || setting.group > 1024 ||
      !std::has_single_bit(static_cast<uint64_t>(setting.group)))
    throw Error(fmt::format("{}: group_size is {}; expected a power of two from 8 to 1024",
                            json.where(), setting.group));
  if (const Json* mode = json.find("mode");
      mode && !mode->is_null() && mode->as_string() != "affine")
    throw Error(fmt::format("{}: the mode \"{}\" is not read; expected \"affine\"", mode->where(),
                            printable(mode->as_string())));
  return setting;
}

/// The code at `index` of a row of codes end to end, the lowest bits first.
uint32_t code_at(const std::byte* codes, int64_t index, int64_t bits) {
  const int64_t bit = index * bits;
  uint32_t two = static_cast<uint32_t>(codes[bit / 8]);
  if (bit % 8 + bits > 8) two |= static_cast<uint32_t>(codes[bit / 8 + 1]) << 8;
  return two >> (bit % 8) & ((1u << bits) - 1);
}

}  // namespace

std::optional<MlxQuantizations> MlxQuantizations::read(const Json& config) {
  const Json* json = config.find("quantization");
  if (!json || json->is_null()) json = config.find("quantization_config");
  if (!json || !json->is_object() || json->find("quant_method") || !json->find("group_size"))
    return std::nullopt;
  MlxQuantizations settings;
  settings.common = read_setting(*json, {});
  for (const auto& [key, value] : json->members()) {
    if (value.is_object())
      settings.by_path.emplace(key, read_setting(value, settings.common));
    else if (value.is_bool() && !value.as_bool())
      settings.by_path.emplace(key, std::nullopt);
    else if (value.is_bool())
      settings.by_path.emplace(key, settings.common);
  }
  return settings;
}

MlxTensors::MlxTensors(const std::filesystem::path& path, MlxQuantizations settings)
    : files_(path), settings_(std::move(settings)) {
  const auto has = [&](std::string_view module, std::string_view ending) {
    return files_.find(std::string(module) + std::string(ending)) != nullptr;
  };
  for (const std::string& name : files_.names()) {
    const size_t dot = name.rfind('.');
    const std::string_view module = std::string_view(name).substr(0, dot);
    const std::string_view ending =
        dot == std::string::npos ? std::string_view() : std::string_view(name).substr(dot);
    if (ending == kMlxWeight && has(module, kMlxScales)) add(std::string(module));
    if ((ending == kMlxScales || ending == kMlxBiases) && has(module, kMlxWeight)) {
      if (!has(module, kMlxScales))
        throw Error(fmt::format("{}: tensor \"{}\" stands there without {}{}",
                                file_of(name).string(), printable(name), printable(module),
                                kMlxScales));
      continue;  // part of its weight
    }
    names_.push_back(name);
  }
}

void MlxTensors::add(const std::string& module) {
  Quantized tensor;
  const std::string name = module + std::string(kMlxWeight);
  tensor.scales = module + std::string(kMlxScales);
  tensor.biases = module + std::string(kMlxBiases);
  const auto fail = [&](const std::string& of, const std::string& what) {
    throw Error(
        fmt::format("{}: tensor \"{}\" {}", files_.file_of(name).string(), printable(of), what));
  };
  const auto own = settings_.by_path.find(module);
  if (own != settings_.by_path.end() && !own->second)
    fail(tensor.scales,
         "stands there, although config.json says that this module is not quantized");
  tensor.how = own == settings_.by_path.end() ? settings_.common : *own->second;
  const SafetensorsEntry& weight = *files_.find(name);
  const SafetensorsEntry& scales = *files_.find(tensor.scales);
  const SafetensorsEntry* biases = files_.find(tensor.biases);
  if (!biases) fail(tensor.biases, "is missing beside the module's weight and scales");
  if (weight.type != "U32")
    fail(name, fmt::format("has the dtype {}, but beside scales U32 is expected", weight.type));
  if (!scales.dtype || !is_float(*scales.dtype) || scales.dtype == Dtype::f64)
    fail(tensor.scales, fmt::format("has the dtype {}; expected F16, BF16 or F32", scales.type));
  if (biases->type != scales.type || biases->dims != scales.dims)
    fail(tensor.biases,
         fmt::format("has shape {} and dtype {}, but its scales {} and {}", biases->shape_text(),
                     biases->type, scales.shape_text(), scales.type));
  tensor.scale_type = *scales.dtype;
  tensor.entry = weight;
  TensorEntry& entry = tensor.entry;
  const auto [bits, group] = tensor.how;
  entry.dims = scales.dims;
  const bool ranks = !scales.dims.empty() && weight.dims.size() == scales.dims.size();
  if (ranks) entry.dims.back() *= group;
  const bool fits = ranks && entry.dims.back() / group == scales.dims.back() &&
                    weight.dims.back() <= (int64_t{1} << 50) &&
                    weight.dims.back() * 32 == entry.dims.back() * bits &&
                    std::equal(weight.dims.begin(), weight.dims.end() - 1, scales.dims.begin());
  if (!fits)
    fail(name, fmt::format(
                   "has shape {} and scales of shape {}, which do not go with {} bits in groups of "
                   "{}, as config.json says",
                   weight.shape_text(), scales.shape_text(), bits, group));
  entry.dtype.reset();
  entry.coded = true;
  entry.type = fmt::format("{} bits in groups of {}", bits, group);
  const std::string format = fmt::format("int{}_g{}_{}", bits, group, to_string(tensor.scale_type));
  if (ops::find_weight_format(format)) entry.format = format;
  quantized_.emplace(name, std::move(tensor));
}

const TensorEntry* MlxTensors::find(std::string_view name) const {
  if (const auto found = quantized_.find(std::string(name)); found != quantized_.end())
    return &found->second.entry;
  for (const std::string_view ending : {kMlxScales, kMlxBiases})
    if (name.ends_with(ending) &&
        quantized_.contains(std::string(name.substr(0, name.size() - ending.size())) +
                            std::string(kMlxWeight)))
      return nullptr;
  return files_.find(name);
}

std::vector<TensorSource::FilePlace> MlxTensors::piece_places(std::string_view name) const {
  const auto found = quantized_.find(std::string(name));
  if (found == quantized_.end()) return files_.piece_places(name);
  const Quantized& tensor = found->second;
  return {*files_.file_place(name), *files_.file_place(tensor.scales),
          *files_.file_place(tensor.biases)};
}

void MlxTensors::read(std::string_view name, int64_t first, const Tensor& to) const {
  const auto found = quantized_.find(std::string(name));
  if (found == quantized_.end()) return files_.read(name, first, to);
  const Quantized& tensor = found->second;
  const int64_t columns = tensor.entry.dims.back(), group = tensor.how.group;
  const int64_t count = to.numel(), bits = tensor.how.bits;
  CHECK(first % group == 0 && count % group == 0 && first + count <= tensor.entry.numel(),
        std::string(name));
  const std::byte* codes = files_.raw(name).data();
  std::vector<float> scales(static_cast<size_t>(count / group)), biases(scales.size());
  files_.read(tensor.scales, first / group, Tensor(std::span(scales)));
  files_.read(tensor.biases, first / group, Tensor(std::span(biases)));
  std::vector<float> values(static_cast<size_t>(group));
  auto* out = static_cast<std::byte*>(to.data());
  for (int64_t done = 0; done < count; done += group) {
    const int64_t row = (first + done) / columns, column = (first + done) % columns;
    const std::byte* of_row = codes + row * (columns * bits / 8);
    const auto at = static_cast<size_t>(done / group);
    for (int64_t i = 0; i < group; ++i)
      values[static_cast<size_t>(i)] =
          static_cast<float>(code_at(of_row, column + i, bits)) * scales[at] + biases[at];
    convert_elements(reinterpret_cast<const std::byte*>(values.data()), Dtype::f32,
                     out + done * size_of(to.dtype()), to.dtype(), group);
  }
}

void MlxTensors::read_codes(std::string_view name, int64_t first_row,
                            std::span<const Tensor> pieces) const {
  const Quantized& tensor = quantized_.at(std::string(name));
  CHECK(!tensor.entry.format.empty() && pieces.size() >= 3, std::string(name));
  const std::array<std::string_view, 3> names = {name, tensor.scales, tensor.biases};
  for (size_t i = 0; i < names.size(); ++i) {
    const auto bytes = static_cast<size_t>(pieces[i].bytes());
    const auto row_bytes = static_cast<int64_t>(bytes) / pieces[i].dim(0);
    std::memcpy(
        pieces[i].data(),
        files_.raw(names[i]).subspan(static_cast<size_t>(first_row * row_bytes), bytes).data(),
        bytes);
  }
}

}  // namespace mixtral
