// Which type each tensor gets. The mixes and fallbacks are those of llama.cpp's quantize
// (src/llama-quant.cpp: llama_tensor_get_type_impl, tensor_type_fallback), so that a file made here
// is what its users expect of the name.
#include "convert/stored_type.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/printable.h"

namespace mixtral {
namespace {

using ops::WeightFormat;

enum class Mix : uint8_t { dense, plain, small, medium, groups };

struct ChoiceRow {
  std::string_view name;
  std::string_view base;  // the type of most tensors
  Mix mix;
  uint32_t file_type;  // llama.cpp's enum llama_ftype
  int bits = 0;        // of MLX's groups
};

constexpr ChoiceRow kChoices[] = {
    {"f32", "f32", Mix::dense, 0},      {"f16", "f16", Mix::dense, 1},
    {"bf16", "bf16", Mix::dense, 32},   {"q8_0", "q8_0", Mix::plain, 7},
    {"q4_0", "q4_0", Mix::plain, 2},    {"q4_1", "q4_1", Mix::plain, 3},
    {"q5_0", "q5_0", Mix::plain, 8},    {"q5_1", "q5_1", Mix::plain, 9},
    {"q4_k_s", "q4_k", Mix::small, 14}, {"q4_k_m", "q4_k", Mix::medium, 15},
    {"q4_k", "q4_k", Mix::medium, 15},  // as llama.cpp's quantize takes the short names
    {"q5_k_s", "q5_k", Mix::small, 16}, {"q5_k_m", "q5_k", Mix::medium, 17},
    {"q5_k", "q5_k", Mix::medium, 17},  {"q6_k", "q6_k", Mix::plain, 18},
    {"int4", "", Mix::groups, 0, 4},    {"int8", "", Mix::groups, 0, 8},
};

const ChoiceRow* find_choice(std::string_view name) {
  const auto row = std::ranges::find(kChoices, name, &ChoiceRow::name);
  return row == std::end(kChoices) ? nullptr : row;
}

bool can_hold(ModelFormat target, const ChoiceRow& row) {
  if (row.mix == Mix::dense) return true;
  return target == (row.mix == Mix::groups ? ModelFormat::mlx : ModelFormat::gguf);
}

WeightFormat format(std::string_view name) {
  const auto found = ops::find_weight_format(name);
  CHECK(found.has_value(), std::string(name));
  return *found;
}

/// A type for rows that are not whole blocks of the one that was chosen.
WeightFormat fitting(WeightFormat chosen, int64_t columns) {
  if (columns % chosen.unit() == 0) return chosen;
  constexpr std::pair<std::string_view, std::string_view> kInstead[] = {
      {"q4_k", "q5_0"}, {"q5_k", "q5_1"}, {"q6_k", "q8_0"}};
  for (const auto& [from, to] : kInstead)
    if (chosen.name() == from && columns % format(to).unit() == 0) return format(to);
  return WeightFormat::f16;
}

/// Layers at both ends, and each third between them.
bool uses_more_bits(int64_t layer, int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

}  // namespace

std::string StoredType::name() const {
  if (grouped()) return fmt::format("int{} in groups of {}", bits, group);
  return std::string(format.name());
}

double StoredType::bits_per_weight(int64_t columns) const {
  const auto dense_bits = static_cast<double>(8 * size_of(format.row().type));
  if (grouped()) return bits + 2 * dense_bits / group;
  return 8 * static_cast<double>(format.row_bytes(columns)) / static_cast<double>(columns);
}

bool is_stored_as(WeightFormat format, const StoredType& type) {
  if (!type.grouped()) return format == type.format;
  const ops::FormatRow& row = format.row();
  return row.kind == ops::FormatKind::separate && row.offset == ops::BlockOffset::minimum &&
         row.bits == type.bits && row.block == type.group &&
         row.scale_type == type.format.row().type && row.minimum_type == row.scale_type;
}

std::vector<StoredType> type_ladder(const StoredType& type, int64_t columns) {
  if (type.dense()) return {type};
  std::vector<StoredType> types;
  if (type.grouped()) {
    for (const int bits : {4, 8})
      types.push_back({.format = type.format, .bits = bits, .group = type.group});
    return types;
  }
  for (const std::string_view name : {"q4_k", "q5_k", "q6_k", "q8_0"}) {
    const StoredType next{.format = fitting(format(name), columns)};
    if (types.empty() || next.bits_per_weight(columns) > types.back().bits_per_weight(columns))
      types.push_back(next);
  }
  return types;
}

std::vector<std::string> type_names(ModelFormat target) {
  std::vector<std::string> names;
  for (const ChoiceRow& row : kChoices)
    if (can_hold(target, row)) names.emplace_back(row.name);
  return names;
}

bool stays_precise(TensorKind kind) {
  return kind == TensorKind::attention_norm || kind == TensorKind::experts_norm ||
         kind == TensorKind::final_norm || kind == TensorKind::router;
}

TypeChoice::TypeChoice(std::string_view name, ModelFormat target, int group_size)
    : name_(name), group_(group_size) {
  if (name.empty()) return;
  const ChoiceRow* row = find_choice(name);
  if (!row || !can_hold(target, *row))
    throw UsageError(fmt::format("{} holds no type '{}'; choose one of {}", mixtral::name(target),
                                 printable(name), fmt::join(type_names(target), ", ")));
  if (row->mix == Mix::groups && group_ != 32 && group_ != 64 && group_ != 128)
    throw UsageError(
        fmt::format("a group of {} columns; MLX has groups of 32, 64 and 128", group_));
}

bool TypeChoice::quantizes() const { return !keeps() && find_choice(name_)->mix != Mix::dense; }

uint32_t TypeChoice::file_type() const { return find_choice(name_)->file_type; }

WeightFormat TypeChoice::mixed(TensorKind kind, int64_t layer, const ModelConfig& config) const {
  using enum TensorKind;
  const ChoiceRow& row = *find_choice(name_);
  const WeightFormat base = format(row.base);
  const bool eight = config.num_experts == 8;
  const int64_t layers = config.num_layers;
  const bool more = row.mix == Mix::medium && uses_more_bits(layer, layers);
  const bool is_q4_k = row.base == "q4_k";
  const bool is_head = kind == head || (kind == embedding && config.tie_embeddings);
  if (is_head) {
    if (config.hidden_size % base.unit() != 0 || row.base == "q8_0") return format("q8_0");
    return format("q6_k");
  }
  if (kind == key && eight) return format("q8_0");
  if (kind == value) {
    if (eight) return format("q8_0");
    if (more) return format("q6_k");
    if (row.mix == Mix::small && is_q4_k && layer < 4) return format("q5_k");
  }
  if (kind == w2) {
    if (more) return format("q6_k");
    if (row.mix == Mix::small && is_q4_k && layer < layers / 8) return format("q5_k");
  }
  if (kind == attention_output && eight && is_q4_k) return format("q5_k");
  return base;
}

StoredType TypeChoice::kept(const std::vector<std::optional<WeightFormat>>& sources,
                            ModelFormat target) const {
  CHECK(!sources.empty());
  const auto& first = sources.front();
  const bool same = std::ranges::all_of(
      sources, [&](const auto& source) { return source.has_value() && *source == *first; });
  if (same && first->dense()) return {.format = *first};
  if (same && first->kind() == ops::FormatKind::blocks && target == ModelFormat::gguf)
    return {.format = *first};
  if (same && target == ModelFormat::mlx && first->kind() == ops::FormatKind::separate &&
      first->row().offset == ops::BlockOffset::minimum)
    return {.format = ops::dense_format(first->row().scale_type),
            .bits = first->row().bits,
            .group = first->row().block};
  // Every type but f64 is exact in f32.
  const bool wide = std::ranges::any_of(sources, [](const auto& source) {
    return source.has_value() && *source == WeightFormat::f64;
  });
  return {.format = wide ? WeightFormat::f64 : WeightFormat::f32};
}

StoredType TypeChoice::of(TensorKind kind, int64_t layer, const ModelConfig& config,
                          ModelFormat target,
                          const std::vector<std::optional<WeightFormat>>& sources) const {
  // llama.cpp multiplies by these in f32 only.
  if (target == ModelFormat::gguf && stays_precise(kind)) return {.format = WeightFormat::f32};
  if (keeps()) return kept(sources, target);
  const ChoiceRow& row = *find_choice(name_);
  if (row.mix == Mix::dense) return {.format = format(row.base)};
  const Shape shape = tensor_shape(config, kind);
  if (row.mix == Mix::groups) {
    const StoredType plain = kept(sources, target);
    if (stays_precise(kind) || shape[1] % group_ != 0) return plain;
    // Scales and biases in 16 bits, as MLX's models have them.
    const WeightFormat scales =
        plain.format == WeightFormat::bf16 ? WeightFormat::bf16 : WeightFormat::f16;
    return {.format = scales, .bits = row.bits, .group = group_};
  }
  return {.format = fitting(mixed(kind, layer, config), shape[1])};
}

}  // namespace mixtral
