// Adapters in GGUF files (llama.cpp, src/llama-adapter.cpp, convert_lora_to_gguf.py) and of
// mistral-inference (lora.py): under those formats' names of the model's tensors, with rotary pairs
// as neighbours, which permutes B's rows of queries and keys.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "io/json.h"
#include "io/model_tensors.h"
#include "model/adapter_reader.h"
#include "model/gguf_tensors.h"
#include "model/peft_config.h"
#include "model/tensor_names.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr double kMistralScaling =
    2;  // where params.json does not say (mistral-inference, args.py)

/// The target that a LoRA of a tensor is of; null where there is none.
const char* target_of(TensorKind kind) {
  switch (kind) {
    case TensorKind::query:
      return "q_proj";
    case TensorKind::key:
      return "k_proj";
    case TensorKind::value:
      return "v_proj";
    case TensorKind::attention_output:
      return "o_proj";
    case TensorKind::router:
      return "gate";
    case TensorKind::w1:
      return "w1";
    case TensorKind::w2:
      return "w2";
    case TensorKind::w3:
      return "w3";
    case TensorKind::head:
      return "lm_head";
    default:
      return nullptr;
  }
}

struct Found {
  AdapterPlace place;
  TensorNaming naming;
};

/// The place of a model's tensor in a scheme.
std::optional<Found> find_module(const NamingScheme& scheme, std::string_view tensor) {
  for (const TensorNaming& row : scheme.rows) {
    const auto id = parse_tensor_name(row, tensor);
    const char* target = target_of(row.kind);
    if (id && target != nullptr)
      return Found{{.layer = id->layer, .target = target, .expert = id->expert}, row};
  }
  return std::nullopt;
}

/// B's rows in the model's order.
std::vector<float> in_model_order(std::vector<float> b, const TensorNaming& naming,
                                  const ModelConfig& config, int64_t rows, int64_t rank) {
  if (naming.row_order == TensorNaming::RowOrder::same) return b;
  std::vector<float> ordered(b.size());
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(b.begin() + row_in_head(naming, r, config.head_dim) * rank, rank,
                ordered.begin() + r * rank);
  return ordered;
}

/// Adds A [r, inputs] or B [rows, r] of a module, of an expert, or [E, ...] of all experts.
/// `factor` is the update's whole scale where `alpha` is not given.
void add(AdapterReader& reader, const TensorEntry& entry, const Found& found,
         std::optional<double> alpha, double factor) {
  const AdapterPlace& place = found.place;
  const TargetShape shape = reader.shape_at(entry, place);
  const bool all = found.naming.all_experts, is_a = place.matrix == 'A';
  const std::vector<int64_t> dims = reader.dims_of(entry, all ? 3 : 2);
  const size_t last = dims.size() - 1;
  const int64_t rank = is_a ? dims[last - 1] : dims[last];
  std::vector<int64_t> expected =
      is_a ? std::vector<int64_t>{rank, shape.inputs} : std::vector<int64_t>{shape.rows, rank};
  if (all) expected.insert(expected.begin(), shape.groups);
  if (dims != expected || rank == 0)
    reader.wrong_shape(entry, fmt::format("[{}]", fmt::join(expected, ", ")));
  std::vector<float> values = reader.read(entry);
  if (!is_a)
    values = in_model_order(std::move(values), found.naming, reader.config(), shape.rows, rank);
  reader.add(entry, place, {rank, std::move(values)},
             {.alpha = alpha.value_or(factor * static_cast<double>(rank))});
}

/// What a tensor's name says: the tensor of the model, and whether it is A or B.
std::optional<Found> find_update(const NamingScheme& scheme, std::string_view name,
                                 std::string_view a, std::string_view b, std::string_view ending) {
  for (const auto& [suffix, matrix] : {std::pair(a, 'A'), std::pair(b, 'B')}) {
    if (!name.ends_with(suffix)) continue;
    auto found = find_module(
        scheme, fmt::format("{}{}", name.substr(0, name.size() - suffix.size()), ending));
    if (found) found->place.matrix = matrix;
    return found;
  }
  return std::nullopt;
}

}  // namespace

AdapterFile load_gguf_adapter(const fs::path& file, const ModelConfig& model) {
  const GgufTensors tensors(file);
  const GgufHeader& header = tensors.header();
  const auto require = [&](const char* key, std::string_view expected) {
    const auto value = header.text(key);
    if (value != expected)
      throw Error(fmt::format("{} is \"{}\"; expected \"{}\"", header.where(key),
                              printable(value.value_or("missing")), expected));
  };
  require("general.type", "adapter");
  require("adapter.type", "lora");
  require("general.architecture", "llama");
  const auto alpha = header.number("adapter.lora.alpha");
  if (!alpha) throw Error(fmt::format("{} is missing", header.where("adapter.lora.alpha")));
  // llama.cpp takes 0 for a scale of 1.
  std::optional<double> given;
  if (*alpha != 0) given = checked_factor(*alpha, header.where("adapter.lora.alpha"));
  AdapterReader reader(tensors, model);
  for (const std::string& name : tensors.names()) {
    const TensorEntry& entry = tensors.at(name);
    const auto found = find_update(*find_naming_scheme("GGUF"), name, ".lora_a", ".lora_b", "");
    if (!found) reader.no_place(entry);
    add(reader, entry, *found, given, 1);
  }
  AdapterFile adapter;
  adapter.modules = reader.finish();
  return adapter;
}

AdapterFile load_mistral_adapter(const fs::path& directory, const ModelConfig& model) {
  double scaling = kMistralScaling;
  const fs::path params = directory / "params.json";
  std::error_code error;
  if (fs::exists(params, error)) {
    const Json json = Json::load(params, kConfigLimits);
    const Json* lora = find_set(json, "lora");
    const Json* value = lora ? find_set(*lora, "scaling") : nullptr;
    if (value) scaling = checked_factor(value->as_double(), value->where());
  }
  const ModelTensors tensors(directory / "lora.safetensors");
  AdapterReader reader(tensors, model);
  for (const std::string& name : tensors.names()) {
    const TensorEntry& entry = tensors.at(name);
    const auto found = find_update(*find_naming_scheme("Mistral"), name, ".lora_A.weight",
                                   ".lora_B.weight", ".weight");
    if (!found) reader.no_place(entry);
    add(reader, entry, *found, std::nullopt, scaling);
  }
  AdapterFile adapter;
  adapter.modules = reader.finish();
  return adapter;
}

}  // namespace mixtral
