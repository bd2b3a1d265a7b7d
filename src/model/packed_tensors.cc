#include "model/packed_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "io/convert.h"

namespace mixtral {
namespace {

using Method = PackedQuantization::Method;

constexpr std::string_view kCodes = ".qweight", kZeros = ".qzeros", kScales = ".scales",
                           kGroups = ".g_idx", kBias = ".bias", kWeight = ".weight";

constexpr int64_t kColumnsAtOnce = 256;

const Json* named_value(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value && !value->is_null() ? value : nullptr;
}

uint32_t word_at(const std::byte* words, int64_t index) {
  uint32_t word = 0;
  std::memcpy(&word, words + 4 * index, sizeof word);
  return word;
}

/// Where the code of output `o` of eight stands in AWQ's words: 0, 4, 1, 5, 2, 6, 3, 7.
int64_t awq_place(int64_t o) { return o % 2 * 4 + o / 2; }

bool all_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

std::optional<PackedQuantization> PackedQuantization::read(const Json& config) {
  const Json* json = named_value(config, "quantization_config");
  const Json* method = json && json->is_object() ? named_value(*json, "quant_method") : nullptr;
  if (!method || (method->as_string() != "awq" && method->as_string() != "gptq"))
    return std::nullopt;
  PackedQuantization how;
  how.method = method->as_string() == "awq" ? Method::awq : Method::gptq;
  const auto integer = [&](const char* key, int64_t& field) {
    if (const Json* value = named_value(*json, key)) field = value->as_int();
  };
  integer("w_bit", how.bits);
  integer("bits", how.bits);
  integer("q_group_size", how.group);
  integer("group_size", how.group);
  const bool known =
      how.method == Method::awq ? how.bits == 4 : how.bits == 2 || how.bits == 4 || how.bits == 8;
  if (!known)
    throw Error(fmt::format("{}: {} bits are not read; expected 4{}", json->where(), how.bits,
                            how.method == Method::gptq ? ", 2 or 8" : ""));
  if (how.group != -1 && (how.group < 1 || how.group > int64_t{1} << 20))
    throw Error(
        fmt::format("{}: group_size is {}; expected -1 or at least 1", json->where(), how.group));
  if (const Json* version = named_value(*json, "version"); version && how.method == Method::awq &&
                                                           version->as_string() != "gemm" &&
                                                           version->as_string() != "GEMM")
    throw Error(fmt::format("{}: expected \"gemm\", found \"{}\", which is not read",
                            version->where(), printable(version->as_string())));
  if (const Json* format = named_value(*json, "checkpoint_format");
      format && how.method == Method::gptq) {
    if (format->as_string() != "gptq" && format->as_string() != "gptq_v2")
      throw Error(
          fmt::format("{}: expected \"gptq\" or \"gptq_v2\", found \"{}\", which is not read",
                      format->where(), printable(format->as_string())));
    how.stores_less_one = format->as_string() == "gptq";
  }
  return how;
}

PackedTensors::PackedTensors(const std::filesystem::path& path, PackedQuantization how)
    : files_(path), how_(how) {
  for (const std::string& name : files_.names()) {
    const size_t dot = name.rfind('.');
    const std::string module = name.substr(0, dot);
    const std::string ending = dot == std::string::npos ? std::string() : name.substr(dot);
    if (!files_.find(module + std::string(kCodes))) {
      names_.push_back(name);
      continue;
    }
    if (ending == kCodes) {
      add(module);
      names_.push_back(module + std::string(kWeight));
    } else if (ending == kBias && all_zero(files_.raw(name))) {
      continue;  // GPTQ's tools write one for every module
    } else if (ending != kZeros && ending != kScales && ending != kGroups) {
      names_.push_back(name);
    }
  }
}

void PackedTensors::add(const std::string& module) {
  Packed tensor;
  tensor.codes = module + std::string(kCodes);
  tensor.zeros = module + std::string(kZeros);
  tensor.scales = module + std::string(kScales);
  const auto fail = [&](const std::string& of, const std::string& what) {
    throw Error(fmt::format("{}: tensor \"{}\" {}", files_.path().string(), printable(of), what));
  };
  for (const std::string& part : {tensor.zeros, tensor.scales})
    if (!files_.find(part))
      fail(part, fmt::format("is missing beside {}", printable(tensor.codes)));
  const SafetensorsEntry &codes = *files_.find(tensor.codes), &zeros = *files_.find(tensor.zeros),
                         &scales = *files_.find(tensor.scales);
  if (scales.dims.size() != 2 || codes.dims.size() != 2 || zeros.dims.size() != 2)
    fail(tensor.codes, "and its zeros and scales must be matrices");
  if (codes.dtype != Dtype::i32 || zeros.dtype != Dtype::i32 || !scales.is_float())
    fail(tensor.codes,
         fmt::format("has the dtype {}, its zeros {} and scales {}; expected I32, I32 "
                     "and F16",
                     codes.type, zeros.type, scales.type));
  const int64_t in_word = 32 / how_.bits, groups = scales.dims[0], outputs = scales.dims[1];
  const int64_t inputs = how_.method == Method::awq ? codes.dims[0] : codes.dims[0] * in_word;
  const int64_t of_codes = how_.method == Method::awq ? codes.dims[1] * in_word : codes.dims[1];
  if (of_codes != outputs || zeros.dims[0] != groups || zeros.dims[1] * in_word != outputs)
    fail(tensor.codes,
         fmt::format("has shape {}, its zeros {} and scales {}, which do not go "
                     "together with {} bits",
                     codes.shape_text(), zeros.shape_text(), scales.shape_text(), how_.bits));
  tensor.group_of = read_groups(module, inputs, groups);
  tensor.entry.name = module + std::string(kWeight);
  tensor.entry.type =
      fmt::format("{} of {} bits", how_.method == Method::awq ? "AWQ" : "GPTQ", how_.bits);
  tensor.entry.coded = true;
  tensor.entry.dims = {outputs, inputs};
  packed_.emplace(tensor.entry.name, std::move(tensor));
}

std::vector<int32_t> PackedTensors::read_groups(const std::string& module, int64_t inputs,
                                                int64_t groups) const {
  std::vector<int32_t> group_of(static_cast<size_t>(inputs));
  const std::string name = module + std::string(kGroups);
  if (const SafetensorsEntry* entry = files_.find(name); entry && how_.method == Method::gptq) {
    if (entry->dtype != Dtype::i32 || entry->dims != std::vector<int64_t>{inputs})
      throw Error(fmt::format("{}: tensor \"{}\" has shape {} and dtype {}; expected [{}] and I32",
                              files_.path().string(), printable(name), entry->shape_text(),
                              entry->type, inputs));
    std::memcpy(group_of.data(), files_.raw(name).data(), group_of.size() * sizeof(int32_t));
  } else {
    const int64_t size = how_.group == -1 ? inputs : how_.group;
    for (int64_t i = 0; i < inputs; ++i)
      group_of[static_cast<size_t>(i)] = static_cast<int32_t>(i / size);
  }
  for (const int32_t group : group_of)
    if (group < 0 || group >= groups)
      throw Error(fmt::format("{}: tensor \"{}\" has {} groups, but an input is of group {}",
                              files_.path().string(), printable(module + std::string(kScales)),
                              groups, group));
  return group_of;
}

std::string PackedTensors::stored_name(std::string_view name) const {
  const auto found = packed_.find(std::string(name));
  return found == packed_.end() ? std::string(name) : found->second.codes;
}

const TensorEntry* PackedTensors::find(std::string_view name) const {
  if (const auto found = packed_.find(std::string(name)); found != packed_.end())
    return &found->second.entry;
  return files_.find(name);
}

void PackedTensors::read(std::string_view name, int64_t first, const Tensor& to) const {
  const auto found = packed_.find(std::string(name));
  if (found == packed_.end()) return files_.read(name, first, to);
  const Packed& tensor = found->second;
  const int64_t inputs = tensor.entry.dims[1], count = to.numel(), size = size_of(to.dtype());
  CHECK(0 <= first && count <= tensor.entry.numel() - first, std::string(name));
  auto* const out = static_cast<std::byte*>(to.data());
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / inputs, column = (first + done) % inputs;
    const int64_t width = std::min(inputs - column, count - done);
    const int64_t rows =
        width < inputs ? 1 : std::min((count - done) / inputs, kRowsAtOnce - row % kRowsAtOnce);
    const Tensor part(out + done * size, {rows, width}, to.dtype());
    read_part(tensor, row, column, part);
    done += rows * width;
  }
}

/// Rows from `row` and columns from `column` on.
void PackedTensors::read_part(const Packed& tensor, int64_t row, int64_t column,
                              const Tensor& to) const {
  const int64_t rows = to.dim(0), width = to.dim(1), outputs = tensor.entry.dims[0];
  const int64_t bits = how_.bits, in_word = 32 / bits, groups = files_.at(tensor.scales).dims[0];
  const bool awq = how_.method == Method::awq;
  const uint32_t mask = (1u << bits) - 1;
  const auto place = [&](int64_t output) {
    return (awq ? awq_place(output % in_word) : output % in_word) * bits;
  };
  // Of each group, for each row.
  std::vector<float> scales(static_cast<size_t>(groups * rows));
  std::vector<int> zeros(scales.size());
  const std::byte* const zero_words = files_.raw(tensor.zeros).data();
  for (int64_t group = 0; group < groups; ++group) {
    const auto at = static_cast<size_t>(group * rows), n = static_cast<size_t>(rows);
    files_.read(tensor.scales, group * outputs + row, Tensor(std::span(scales).subspan(at, n)));
    for (size_t r = 0; r < n; ++r) {
      const int64_t output = row + static_cast<int64_t>(r);
      const uint32_t word = word_at(zero_words, (group * outputs + output) / in_word);
      zeros[at + r] = static_cast<int>(word >> place(output) & mask);
      if (!awq && how_.stores_less_one) ++zeros[at + r];
    }
  }
  // Of each row: the word of its code behind an input's first word, and the shift there.
  std::vector<int64_t> words, shifts;
  words.reserve(static_cast<size_t>(rows));
  shifts.reserve(words.capacity());
  for (int64_t output = row; output < row + rows; ++output) {
    words.push_back(awq ? output / in_word : output);
    shifts.push_back(awq ? place(output) : 0);
  }
  const std::byte* const codes = files_.raw(tensor.codes).data();
  std::vector<float> values(static_cast<size_t>(rows * kColumnsAtOnce));
  for (int64_t begin = 0; begin < width; begin += kColumnsAtOnce) {
    const int64_t n = std::min(kColumnsAtOnce, width - begin);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t input = column + begin + i;
      const int64_t group = tensor.group_of[static_cast<size_t>(input)];
      const int64_t first_word = awq ? input * (outputs / in_word) : input / in_word * outputs;
      const int64_t shift = awq ? 0 : input % in_word * bits;
      for (size_t r = 0; r < words.size(); ++r) {
        const size_t of_group = static_cast<size_t>(group) * words.size() + r;
        const uint32_t code = word_at(codes, first_word + words[r]) >> (shift + shifts[r]) & mask;
        values[r * kColumnsAtOnce + static_cast<size_t>(i)] =
            static_cast<float>(static_cast<int>(code) - zeros[of_group]) * scales[of_group];
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      convert_elements(
          reinterpret_cast<const std::byte*>(values.data() + r * kColumnsAtOnce), Dtype::f32,
          static_cast<std::byte*>(to.data()) + (r * width + begin) * size_of(to.dtype()),
          to.dtype(), n);
  }
}

}  // namespace mixtral
