#include "model/adapter_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <regex>
#include <set>

#include "io/manifest.h"
#include "io/safetensors.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// A tensor's place: which module, which expert of it, and whether it is A or B.
struct Place {
  int64_t layer = -1;
  std::string target;
  int64_t expert = -1;
  char matrix = 'A';
};

std::optional<int64_t> take_number(std::string_view& text) {
  size_t digits = 0;
  int64_t value = 0;
  while (digits < text.size() && digits < 9 && text[digits] >= '0' && text[digits] <= '9')
    value = value * 10 + (text[digits++] - '0');
  if (digits == 0) return std::nullopt;
  text.remove_prefix(digits);
  return value;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// What `fused` names mean in this file: with one of the two fused experts' parameters targeted it
/// has the plain name; with both, the plain name is down_proj's, the outer wrapper.
struct FusedNames {
  bool gate_up = false, down = false;
};

/// Finds a module path such as "model.layers.3.self_attn.q_proj".
std::optional<Place> place_of(std::string_view module, const FusedNames& fused) {
  Place place;
  if (module == "lm_head") {
    place.target = "lm_head";
    return place;
  }
  if (!take(module, "model.layers.")) return std::nullopt;
  const auto layer = take_number(module);
  if (!layer || !take(module, ".")) return std::nullopt;
  place.layer = *layer;
  if (module == "mlp.experts.base_layer") {
    if (!fused.gate_up || !fused.down) return std::nullopt;
    place.target = "gate_up_proj";
    return place;
  }
  if (module == "mlp.experts") {
    if (!fused.gate_up && !fused.down) return std::nullopt;
    place.target = fused.down ? "down_proj" : "gate_up_proj";
    return place;
  }
  if (module == "mlp.gate") module = "block_sparse_moe.gate";
  for (const AdapterTarget& target : adapter_targets()) {
    if (!target.per_layer || target.fused) continue;
    if (!target.per_expert) {
      if (module != target.module) continue;
      place.target = target.name;
      return place;
    }
    std::string_view rest = module;
    if (!take(rest, "block_sparse_moe.experts.")) continue;
    const auto expert = take_number(rest);
    if (!expert || rest != "." + target.name) continue;
    place.target = target.name;
    place.expert = *expert;
    return place;
  }
  return std::nullopt;
}

// Adapters come from anywhere, and a regular expression can be made to take for ever. libstdc++ has
// a way of matching whose time is bounded; PEFT's own patterns are short.
constexpr size_t kLongestPattern = 256;
#ifdef __GLIBCXX__
constexpr auto kRegexKind = std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
constexpr auto kRegexKind = std::regex::ECMAScript;
#endif

/// The value that a pattern map gives for a module, as PEFT looks it up: a key is a regular
/// expression for the end of the module's path.
double pattern_value(const Json* patterns, const std::string& module, double otherwise) {
  if (!patterns || patterns->is_null()) return otherwise;
  for (const auto& [key, value] : patterns->members()) {
    if (key.size() > kLongestPattern)
      throw Error(fmt::format("{}: its key has {} bytes; at most {} are accepted", value.where(),
                              key.size(), kLongestPattern));
    try {
      if (std::regex_match(module, std::regex("(.*\\.)?(" + key + ")", kRegexKind)))
        return value.as_double();
    } catch (const std::regex_error&) {
      throw Error(fmt::format("{}: '{}' is not a regular expression that is understood here",
                              value.where(), printable(key)));
    }
  }
  return otherwise;
}

double checked_factor(double factor, const std::string& where) {
  if (std::abs(factor) <= kMostAdapterFactor) return factor;
  throw Error(fmt::format("{}: expected a number from {} to {}, found {}", where,
                          -kMostAdapterFactor, kMostAdapterFactor, factor));
}

double checked_dropout(const Json& value) {
  const double dropout = value.as_double();
  if (dropout >= 0 && dropout < 1) return dropout;
  throw Error(
      fmt::format("{}: expected a share from 0 to below 1, found {}", value.where(), dropout));
}

bool is_set(const Json* value) {
  if (!value || value->is_null()) return false;
  if (value->is_bool()) return value->as_bool();
  if (value->is_array()) return !value->items().empty();
  if (value->is_object()) return !value->members().empty();
  return true;
}

void refuse_unknown_features(const Json& config) {
  const auto kind = config.at("peft_type").as_string();
  if (kind != "LORA")
    throw Error(fmt::format("{}: peft_type is {}; only LORA is known here", config.where(), kind));
  for (const char* key :
       {"use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora",
        "layer_replication", "alora_invocation_tokens", "trainable_token_indices"}) {
    if (is_set(config.find(key)))
      throw Error(
          fmt::format("{}: {} is set; this program knows plain LoRA only", config.where(), key));
  }
  if (const Json* bias = config.find("bias"); bias && bias->as_string() != "none")
    throw Error(fmt::format("{}: bias is '{}', but a Mixtral has no biases", config.where(),
                            bias->as_string()));
}

/// Reads files into modules; shared by the two layouts.
class Reader {
 public:
  Reader(const fs::path& file, const ModelConfig& config) : file_(file), config_(config) {}

  const SafetensorsFile& file() const { return file_; }

  /// Adds one tensor of a PEFT file.
  void add_peft(const SafetensorsEntry& entry, const Place& place, int64_t expected_rank,
                double alpha, bool rslora) {
    const TargetShape shape = checked_shape(entry, place);
    const AdapterTarget& target = adapter_target(place.target);
    const bool is_a = place.matrix == 'A';
    // [r, I] or [E·r, I]; [rows, r] or [rows, r·E]
    const std::vector<int64_t> dims = dims_of(entry, 2);
    const int64_t per = target.fused ? shape.groups : 1;
    const int64_t packed = is_a ? dims[0] : dims[1];
    if (packed % per != 0 || packed == 0 ||
        (is_a ? dims[1] != shape.inputs : dims[0] != shape.rows))
      wrong_shape(entry,
                  is_a ? fmt::format("[r, {}]", shape.inputs) : fmt::format("[{}, r]", shape.rows));
    const int64_t rank = packed / per;
    // Which pattern a fused parameter's rank comes from is PEFT's secret: its shape tells.
    if (!target.fused && rank != expected_rank)
      throw Error(fmt::format(
          "{}: tensor {} has rank {}, but adapter_config.json says {}; the two belong to different "
          "adapters",
          file_.path().string(), entry.name, rank, expected_rank));
    const std::vector<float> values = read(entry);
    AdapterModule& module = module_for(entry, place, rank, alpha, rslora, shape);
    if (is_a) {
      const int64_t group = target.per_expert ? place.expert : 0;
      std::copy(values.begin(), values.end(), module.a.begin() + group * rank * shape.inputs);
    } else if (target.fused) {
      for (int64_t row = 0; row < shape.rows; ++row)
        for (int64_t j = 0; j < rank; ++j)
          for (int64_t g = 0; g < shape.groups; ++g)
            at(module.b, (g * shape.rows + row) * rank + j) =
                values[static_cast<size_t>((row * rank + j) * shape.groups + g)];
    } else {
      const int64_t group = target.per_expert ? place.expert : 0;
      std::copy(values.begin(), values.end(), module.b.begin() + group * shape.rows * rank);
    }
    note(entry, place);
  }

  /// Adds one tensor of an mlx-lm file: lora_a [in, r] or [E, r, in]; lora_b [r, out] or [E, out,
  /// r].
  void add_mlx(const SafetensorsEntry& entry, const Place& place, double scale) {
    const TargetShape shape = checked_shape(entry, place);
    const bool experts = adapter_target(place.target).per_expert;
    const bool is_a = place.matrix == 'A';
    const std::vector<int64_t> dims = dims_of(entry, experts ? 3 : 2);
    const int64_t rank = experts ? (is_a ? dims[1] : dims[2]) : (is_a ? dims[1] : dims[0]);
    const std::vector<int64_t> expected =
        experts ? (is_a ? std::vector<int64_t>{shape.groups, rank, shape.inputs}
                        : std::vector<int64_t>{shape.groups, shape.rows, rank})
                : (is_a ? std::vector<int64_t>{shape.inputs, rank}
                        : std::vector<int64_t>{rank, shape.rows});
    if (dims != expected || rank == 0)
      wrong_shape(entry, fmt::format("[{}]", fmt::join(expected, ", ")));
    std::vector<float> values = read(entry);
    if (!experts) {  // transpose
      std::vector<float> turned(values.size());
      for (int64_t i = 0; i < dims[0]; ++i)
        for (int64_t j = 0; j < dims[1]; ++j)
          at(turned, j * dims[0] + i) = at(values, i * dims[1] + j);
      values = std::move(turned);
    }
    // mlx-lm's scale multiplies directly: it is PEFT's alpha / r.
    AdapterModule& module =
        module_for(entry, place, rank, scale * static_cast<double>(rank), false, shape);
    (is_a ? module.a : module.b) = std::move(values);
    for (int64_t e = 0; experts && e < shape.groups; ++e)
      if (std::find(module.experts.begin(), module.experts.end(), e) == module.experts.end())
        module.experts.push_back(e);
    for (int64_t e = 0; e < (experts ? shape.groups : 1); ++e) {
      Place each = place;
      each.expert = experts ? e : -1;
      note(entry, each);
    }
  }

  /// All modules, in the order of layers and targets; every A with its B.
  std::vector<AdapterModule> finish() {
    for (const auto& [key, seen] : halves_) {
      if (seen != 3)
        throw Error(
            fmt::format("{}: layer {} {}{} has lora_{} but no lora_{}", file_.path().string(),
                        std::get<0>(key), std::get<1>(key),
                        std::get<2>(key) >= 0 ? fmt::format(" of expert {}", std::get<2>(key)) : "",
                        seen == 1 ? 'A' : 'B', seen == 1 ? 'B' : 'A'));
    }
    std::vector<AdapterModule> result;
    for (auto& [key, module] : modules_) {
      std::sort(module.experts.begin(), module.experts.end());
      result.push_back(std::move(module));
    }
    if (result.empty())
      throw Error(fmt::format("{}: holds no LoRA tensors", file_.path().string()));
    return result;
  }

 private:
  static float& at(std::vector<float>& values, int64_t i) { return values[static_cast<size_t>(i)]; }

  [[noreturn]] void wrong_shape(const SafetensorsEntry& entry, const std::string& expected) const {
    throw Error(fmt::format("{}: tensor {} has shape {}, but for this model it must be {}",
                            file_.path().string(), entry.name, entry.shape_text(), expected));
  }

  std::vector<int64_t> dims_of(const SafetensorsEntry& entry, size_t rank) const {
    if (entry.dims.size() != rank) wrong_shape(entry, fmt::format("of {} dimensions", rank));
    return entry.dims;
  }

  TargetShape checked_shape(const SafetensorsEntry& entry, const Place& place) const {
    if (place.layer >= config_.num_layers || place.expert >= config_.num_experts)
      throw Error(
          fmt::format("{}: tensor {} belongs to a larger model than this one of {} layers and "
                      "{} experts",
                      file_.path().string(), entry.name, config_.num_layers, config_.num_experts));
    return target_shape(config_, place.target);
  }

  std::vector<float> read(const SafetensorsEntry& entry) const {
    std::vector<float> values(static_cast<size_t>(entry.numel()));
    Shape shape;
    if (entry.dims.size() == 2) shape = {entry.dims[0], entry.dims[1]};
    if (entry.dims.size() == 3) shape = {entry.dims[0], entry.dims[1], entry.dims[2]};
    file_.read_into(entry.name, Tensor(values.data(), shape, Dtype::f32));
    for (const float value : values) {
      if (!std::isfinite(value))
        throw Error(fmt::format("{}: tensor {} holds a value that is not finite",
                                file_.path().string(), entry.name));
    }
    return values;
  }

  AdapterModule& module_for(const SafetensorsEntry& entry, const Place& place, int64_t rank,
                            double alpha, bool rslora, const TargetShape& shape) {
    const auto& targets = adapter_targets();
    const auto order = std::find_if(targets.begin(), targets.end(),
                                    [&](const auto& t) { return t.name == place.target; });
    AdapterModule& module = modules_[{place.layer, order - targets.begin()}];
    if (module.target.empty()) {
      module.layer = place.layer;
      module.target = place.target;
      module.rank = rank;
      module.alpha = alpha;
      module.scale =
          alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
      module.a.assign(static_cast<size_t>(shape.groups * rank * shape.inputs), 0);
      module.b.assign(static_cast<size_t>(shape.groups * shape.rows * rank), 0);
    }
    if (module.rank != rank || module.alpha != alpha)
      throw Error(
          fmt::format("{}: tensor {} has rank {} and alpha {}, but the same module has {} and "
                      "{} elsewhere in the layer",
                      file_.path().string(), entry.name, rank, alpha, module.rank, module.alpha));
    if (place.expert >= 0 && std::find(module.experts.begin(), module.experts.end(),
                                       place.expert) == module.experts.end())
      module.experts.push_back(place.expert);
    return module;
  }

  void note(const SafetensorsEntry& entry, const Place& place) {
    int& seen = halves_[{place.layer, place.target, place.expert}];
    const int half = place.matrix == 'A' ? 1 : 2;
    if (seen & half)
      throw Error(fmt::format("{}: tensor {} stands there twice, under two names",
                              file_.path().string(), entry.name));
    seen |= half;
  }

  SafetensorsFile file_;
  const ModelConfig& config_;
  std::map<std::pair<int64_t, std::ptrdiff_t>, AdapterModule> modules_;
  std::map<std::tuple<int64_t, std::string, int64_t>, int> halves_;
};

[[noreturn]] void no_place(const fs::path& file, const std::string& name) {
  throw Error(
      fmt::format("{}: tensor {} matches nothing in this model; is the adapter for another "
                  "one?",
                  file.string(), name));
}

AdapterFile load_peft(const fs::path& directory, const Json& config, const ModelConfig& model) {
  refuse_unknown_features(config);
  AdapterFile adapter;
  if (const Json* flag = config.find("use_rslora")) adapter.rslora = flag->as_bool();
  if (const Json* value = config.find("lora_dropout")) adapter.dropout = checked_dropout(*value);
  if (const Json* base = config.find("base_model_name_or_path"); base && base->is_string())
    adapter.base_model = base->as_string();
  FusedNames fused;
  if (const Json* parameters = config.find("target_parameters");
      parameters && !parameters->is_null()) {
    for (const Json& item : parameters->items()) {
      const std::string& name = item.as_string();
      fused.gate_up |= name.ends_with("gate_up_proj");
      fused.down |= name.ends_with("down_proj");
    }
  }
  const double alpha = config.at("lora_alpha").as_double();
  const auto rank = static_cast<double>(config.at("r").as_int());
  verify_listed(directory / "adapter_model.safetensors");
  Reader reader(directory / "adapter_model.safetensors", model);
  for (const SafetensorsEntry& entry : reader.file().entries()) {
    std::string_view name = entry.name;
    take(name, kPeftPrefix);
    std::optional<Place> place;
    for (const char matrix : {'A', 'B'}) {
      const std::string suffix = fmt::format(".lora_{}.weight", matrix);
      if (!name.ends_with(suffix)) continue;
      const std::string module(name.substr(0, name.size() - suffix.size()));
      place = place_of(module, fused);
      if (!place && module.find(".mlp.experts") != std::string::npos)
        throw Error(
            fmt::format("{}: tensor {} is of fused experts, but adapter_config.json's "
                        "target_parameters does not "
                        "say which (mlp.experts.gate_up_proj, mlp.experts.down_proj or both)",
                        reader.file().path().string(), entry.name));
      if (!place) break;
      place->matrix = matrix;
      reader.add_peft(
          entry, *place,
          static_cast<int64_t>(pattern_value(config.find("rank_pattern"), module, rank)),
          checked_factor(pattern_value(config.find("alpha_pattern"), module, alpha),
                         config.where() + ": lora_alpha"),
          adapter.rslora);
    }
    if (!place) no_place(reader.file().path(), entry.name);
  }
  adapter.modules = reader.finish();
  return adapter;
}

AdapterFile load_mlx(const fs::path& directory, const Json& config, const ModelConfig& model) {
  if (const Json* kind = config.find("fine_tune_type"); kind && kind->as_string() != "lora")
    throw Error(fmt::format("{}: fine_tune_type is '{}'; only lora is known here", config.where(),
                            kind->as_string()));
  const Json& parameters = config.at("lora_parameters");
  const double scale =
      checked_factor(parameters.at("scale").as_double(), parameters.at("scale").where());
  AdapterFile adapter;
  if (const Json* value = parameters.find("dropout")) adapter.dropout = checked_dropout(*value);
  static constexpr std::pair<std::string_view, std::string_view> kExperts[] = {
      {"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
  Reader reader(directory / "adapters.safetensors", model);
  for (const SafetensorsEntry& entry : reader.file().entries()) {
    std::string_view name = entry.name;
    std::optional<Place> place;
    for (const char matrix : {'a', 'b'}) {
      const std::string suffix = fmt::format(".lora_{}", matrix);
      if (!name.ends_with(suffix)) continue;
      const std::string_view module = name.substr(0, name.size() - suffix.size());
      place = place_of(module, {});
      for (const auto& [theirs, ours] : kExperts) {
        std::string_view rest = module;
        if (place || !take(rest, "model.layers.")) continue;
        const auto layer = take_number(rest);
        if (layer && rest == fmt::format(".block_sparse_moe.switch_mlp.{}", theirs)) {
          place.emplace();
          place->layer = *layer;
          place->target = ours;
        }
      }
      if (!place) break;
      place->matrix = matrix == 'a' ? 'A' : 'B';
      reader.add_mlx(entry, *place, scale);
    }
    if (!place) no_place(reader.file().path(), entry.name);
  }
  adapter.modules = reader.finish();
  return adapter;
}

}  // namespace

AdapterFile AdapterFile::load(const fs::path& directory, const ModelConfig& model) {
  const fs::path config_path = directory / "adapter_config.json";
  if (!fs::exists(config_path))
    throw Error(
        fmt::format("{}: found no adapter_config.json; an adapter is a folder with that file "
                    "and adapter_model.safetensors (PEFT) or adapters.safetensors (mlx-lm)",
                    directory.string()));
  const Json config = Json::load(config_path);
  if (config.find("peft_type")) return load_peft(directory, config, model);
  if (config.find("lora_parameters")) return load_mlx(directory, config, model);
  throw Error(fmt::format("{}: has neither peft_type (PEFT) nor lora_parameters (mlx-lm)",
                          config_path.string()));
}

}  // namespace mixtral
