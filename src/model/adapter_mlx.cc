// Adapters of mlx-lm: adapters.safetensors, with all experts of a layer in one tensor.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "io/json.h"
#include "io/model_tensors.h"
#include "model/adapter_reader.h"
#include "model/peft_config.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

std::optional<AdapterPlace> place_of_experts(std::string_view module) {
  static constexpr std::pair<std::string_view, std::string_view> kExperts[] = {
      {"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
  if (!take_prefix(module, "model.layers.")) return std::nullopt;
  const auto layer = take_number(module);
  if (!layer || !take_prefix(module, ".block_sparse_moe.switch_mlp.")) return std::nullopt;
  for (const auto& [theirs, ours] : kExperts)
    if (module == theirs) return AdapterPlace{.layer = *layer, .target = std::string(ours)};
  return std::nullopt;
}

/// The place of "MODULE.lora_a"; `module` gets what stands before the suffix.
std::optional<AdapterPlace> place_of_tensor(std::string_view name) {
  for (const char matrix : {'a', 'b'}) {
    const std::string suffix = fmt::format(".lora_{}", matrix);
    if (!name.ends_with(suffix)) continue;
    const std::string_view module = name.substr(0, name.size() - suffix.size());
    auto place = place_of_module(module);
    // A single expert's matrices are PEFT's; mlx-lm has all of them in one tensor.
    if (!place || place->expert >= 0) place = place_of_experts(module);
    if (place) place->matrix = matrix == 'a' ? 'A' : 'B';
    return place;
  }
  return std::nullopt;
}

/// Reads lora_a [in, r] or [E, r, in], or lora_b [r, out] or [E, out, r].
AdapterMatrix read_matrix(const AdapterReader& reader, const TensorEntry& entry,
                          const AdapterPlace& place) {
  const TargetShape shape = reader.shape_at(entry, place);
  const bool experts = adapter_target(place.target).per_expert, is_a = place.matrix == 'A';
  const std::vector<int64_t> dims = reader.dims_of(entry, experts ? 3 : 2);
  const int64_t rank = experts ? (is_a ? dims[1] : dims[2]) : (is_a ? dims[1] : dims[0]);
  std::vector<int64_t> expected;
  if (experts)
    expected = is_a ? std::vector<int64_t>{shape.groups, rank, shape.inputs}
                    : std::vector<int64_t>{shape.groups, shape.rows, rank};
  else
    expected =
        is_a ? std::vector<int64_t>{shape.inputs, rank} : std::vector<int64_t>{rank, shape.rows};
  if (dims != expected || rank == 0)
    reader.wrong_shape(entry, fmt::format("[{}]", fmt::join(expected, ", ")));
  std::vector<float> values = reader.read(entry);
  if (!experts) values = transposed(values, dims[0], dims[1]);
  return {rank, std::move(values)};
}

}  // namespace

AdapterFile load_mlx_adapter(const fs::path& directory, const Json& json,
                             const ModelConfig& model) {
  if (const Json* kind = find_set(json, "fine_tune_type"); kind && kind->as_string() != "lora")
    throw Error(fmt::format("{}: fine_tune_type is '{}'; only lora is known here", json.where(),
                            printable(kind->as_string())));
  const Json& parameters = json.at("lora_parameters");
  const double scale =
      checked_factor(parameters.at("scale").as_double(), parameters.at("scale").where());
  AdapterFile adapter;
  if (const Json* value = find_set(parameters, "dropout"))
    adapter.dropout = checked_dropout(*value);
  const fs::path file = directory / "adapters.safetensors";
  const ModelTensors tensors(file);
  AdapterReader reader(tensors, model);
  for (const std::string& name : tensors.names()) {
    const TensorEntry& entry = tensors.at(name);
    const auto place = place_of_tensor(entry.name);
    if (!place) reader.no_place(entry);
    AdapterMatrix matrix = read_matrix(reader, entry, *place);
    // mlx-lm's scale multiplies directly: it is PEFT's alpha / r.
    const double alpha = scale * static_cast<double>(matrix.rank);
    reader.add(entry, *place, std::move(matrix), {.alpha = alpha});
  }
  adapter.modules = reader.finish();
  return adapter;
}

}  // namespace mixtral
