#include "model/merge_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <map>
#include <set>

#include "io/convert.h"
#include "io/json.h"
#include "io/model_tensors.h"
#include "model/pattern_map.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// One factor of an update: element (i, j) of it is at first + i · row + j · column of the file's
/// tensor.
struct Factor {
  const SafetensorsEntry* entry = nullptr;
  int64_t first = 0, row = 0, column = 0;
};
/// What an adapter adds to a tensor of the model: factor · B A.
struct Update {
  const SafetensorsFile* file = nullptr;
  double factor = 1;
  int64_t rank = 0;
  Factor a;  // [rank, inputs]
  Factor b;  // [rows, rank]
};
using Updates = std::multimap<std::string, Update>;  // by the tensor's name

/// Rows and inputs of a layer's packed parameters.
struct PackedShape {
  int64_t experts, gate_up_rows, gate_up_inputs, down_rows, down_inputs;
};

PackedShape packed_shape(const ModelConfig& c) {
  return {c.num_experts, 2 * c.intermediate_size, c.hidden_size, c.hidden_size,
          c.intermediate_size};
}

class AdapterUpdates {
 public:
  AdapterUpdates(const SafetensorsFile& file, const ModelConfig& model, double weight,
                 Updates& updates)
      : file_(file), packed_(packed_shape(model)), weight_(weight), updates_(updates) {}

  void add_peft(const Json& config) {
    rslora_ = flag(config, "use_rslora");
    alpha_ = config.at("lora_alpha").as_double();
    std::vector<PatternMap::Entry> alphas;
    if (const Json* patterns = config.find("alpha_pattern"); patterns && patterns->is_object())
      for (const auto& [key, value] : patterns->members())
        alphas.push_back({key, value.as_double()});
    if (is_packed_by_conversion(config)) alphas.push_back({R"(.*\.gate_up_proj)", 2 * alpha_});
    alphas_ = PatternMap(std::move(alphas), config.where());
    if (const Json* version = config.find("peft_version"); version && version->is_string())
      old_ = version->as_string().starts_with("0.") &&
             std::atoi(version->as_string().c_str() + 2) < 19;
    const std::string suffix = ".lora_A.weight", prefix = "base_model.model.";
    for (const SafetensorsEntry& a : file_.entries()) {
      if (!a.name.ends_with(suffix)) continue;
      std::string module = a.name.substr(0, a.name.size() - suffix.size());
      const SafetensorsEntry& b = file_.at(module + ".lora_B.weight");
      if (module.starts_with(prefix)) module.erase(0, prefix.size());
      if (const size_t at = module.find(".mlp.experts"); at != std::string::npos)
        add_packed(module.substr(0, at), a, b);
      else
        add_module(module, a, b);
    }
  }

  void add_mlx(const Json& config) {
    const double scale = config.at("lora_parameters").at("scale").as_double();
    static const std::map<std::string, std::string> kExperts = {
        {"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
    for (const SafetensorsEntry& a : file_.entries()) {
      if (!a.name.ends_with(".lora_a")) continue;
      const std::string module = a.name.substr(0, a.name.size() - 7);
      const SafetensorsEntry& b = file_.at(module + ".lora_b");
      if (a.dims.size() == 2) {
        const int64_t rank = a.dims[1];
        put(module + ".weight", scale, rank, {&a, 0, 1, rank}, {&b, 0, 1, b.dims[1]});
        continue;
      }
      const size_t at = module.find("switch_mlp.");
      const std::string which = kExperts.at(module.substr(at + 11));
      const int64_t rank = a.dims[1], inputs = a.dims[2], rows = b.dims[1];
      for (int64_t e = 0; e < a.dims[0]; ++e)
        put(fmt::format("{}experts.{}.{}.weight", module.substr(0, at), e, which), scale, rank,
            {&a, e * rank * inputs, inputs, 1}, {&b, e * rows * rank, rank, 1});
    }
  }

 private:
  static bool flag(const Json& config, const char* key) {
    const Json* value = config.find(key);
    return value && value->is_bool() && value->as_bool();
  }

  /// Whether PEFT makes gate_up_proj of w1 and w3, which doubles alpha.
  static bool is_packed_by_conversion(const Json& config) {
    const Json* targets = config.find("target_modules");
    if (!targets || !targets->is_array()) return targets && targets->is_string();
    std::set<std::string> ends;
    for (const Json& target : targets->items()) {
      const std::string& name = target.as_string();
      ends.insert(name.substr(name.rfind('.') + 1));
    }
    return ends.contains("w1") && ends.contains("w3");
  }

  double factor_of(const std::string& name, int64_t rank) const {
    const auto r = static_cast<double>(rank);
    return alphas_.find(name).value_or(alpha_) * (rslora_ ? 1 / std::sqrt(r) : 1 / r);
  }

  void put(std::string name, double factor, int64_t rank, const Factor& a, const Factor& b) {
    updates_.emplace(std::move(name), Update{&file_, weight_ * factor, rank, a, b});
  }

  void add_module(const std::string& module, const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const int64_t rank = a.dims.at(0);
    std::string name = module + ".weight", tensor = name;
    if (const size_t at = name.find(".mlp.gate."); at != std::string::npos)
      tensor.replace(at, 5, ".block_sparse_moe.");  // a parameter, whose name ends in .weight
    else
      name = module;
    put(tensor, factor_of(name, rank), rank, {&a, 0, a.dims.at(1), 1}, {&b, 0, rank, 1});
  }

  /// Which parameter it is and how its sides stand is seen from the widths alone, where these
  /// differ.
  void add_packed(const std::string& layer, const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const int64_t from = a.dims.at(1), to = b.dims.at(0), count = packed_.experts;
    const int64_t rank = a.dims.at(0) / count;
    const auto is = [&](int64_t rows, int64_t inputs) {
      return old_ && rows == inputs ? false : from == inputs && to == rows;
    };
    const bool gate_up = is(packed_.gate_up_rows, packed_.gate_up_inputs);
    const bool down = is(packed_.down_rows, packed_.down_inputs);
    const bool gate_up_old = from == packed_.gate_up_rows && to == packed_.gate_up_inputs;
    const bool is_gate_up = gate_up || (!down && gate_up_old);
    const bool as_now = gate_up || down;
    const std::string parameter = is_gate_up ? "gate_up_proj" : "down_proj";
    const double factor = factor_of(fmt::format("{}.mlp.experts.{}", layer, parameter), rank);
    const int64_t half = packed_.gate_up_rows / 2;
    for (int64_t e = 0; e < count; ++e) {
      // [rank · E] columns with the expert fastest; [E · rank] rows with it slowest.
      const Factor wide{&b, e, rank * count, count}, tall{&a, e * rank * from, from, 1};
      const Factor rows = as_now ? wide : Factor{&a, tall.first, 1, from};
      const Factor inputs = as_now ? tall : Factor{&b, wide.first, count, rank * count};
      const auto put_rows = [&](const char* which, int64_t skipped) {
        Factor part = rows;
        part.first += skipped * part.row;
        put(fmt::format("{}.block_sparse_moe.experts.{}.{}.weight", layer, e, which), factor, rank,
            inputs, part);
      };
      if (is_gate_up) {
        put_rows("w1", 0);
        put_rows("w3", half);
      } else {
        put_rows("w2", 0);
      }
    }
  }

  const SafetensorsFile& file_;
  PackedShape packed_;
  double weight_, alpha_ = 0;
  bool rslora_ = false, old_ = false;
  PatternMap alphas_;
  Updates& updates_;
};

/// Elements of a tensor, of a model or of one file, as doubles.
template <class Source>
std::vector<double> elements(const Source& source, const std::string& name, int64_t first,
                             int64_t count) {
  std::vector<double> values(static_cast<size_t>(count));
  source.read(name, first, Tensor(values.data(), {count}, Dtype::f64));
  return values;
}

class RowCheck {
 public:
  RowCheck(const fs::path& base, const fs::path& merged) : base_(base), merged_(merged) {}

  MergeCheck run(const Updates& updates) {
    for (const auto& [name, update] : updates)
      if (!merged_.find(name))
        throw Error(fmt::format("{}: tensor {}, which an adapter changes, is missing",
                                merged_.path().string(), name));
    for (const std::string& name : merged_.names()) {
      const TensorEntry& entry = merged_.at(name);
      const int64_t rows = entry.dims.empty() ? 1 : entry.dims[0];
      std::set<int64_t> some;
      constexpr int64_t kRows = 4;
      for (int64_t i = 0; i < kRows; ++i) some.insert((rows - 1) * i / (kRows - 1));
      for (const int64_t row : some) compare(name, row, rows, updates);
      ++result_.tensors;
    }
    return result_;
  }

 private:
  void compare(const std::string& name, int64_t row, int64_t rows, const Updates& updates) {
    const TensorEntry& entry = merged_.at(name);
    const int64_t columns = entry.numel() / std::max<int64_t>(rows, 1);
    const auto found = elements(merged_, name, row * columns, columns);
    auto expected = elements(base_, name, row * columns, columns);
    const auto [begin, end] = updates.equal_range(name);
    for (auto update = begin; update != end; ++update) add(update->second, row, expected);
    for (size_t i = 0; i < found.size(); ++i) {
      const double unit = last_place(expected[i], *entry.dtype);
      const double difference = std::abs(found[i] - expected[i]) / unit;
      if (difference <= result_.difference) continue;
      result_.difference = difference;
      result_.tensor = name;
    }
    ++result_.rows;
  }

  void add(const Update& update, int64_t row, std::vector<double>& to) {
    const auto& a = values_of(*update.file, *update.a.entry);
    const auto& b = values_of(*update.file, *update.b.entry);
    for (int64_t j = 0; j < update.rank; ++j) {
      const double scaled =
          update.factor *
          b.at(static_cast<size_t>(update.b.first + row * update.b.row + j * update.b.column));
      for (size_t i = 0; i < to.size(); ++i)
        to[i] += scaled * a.at(static_cast<size_t>(update.a.first + j * update.a.row +
                                                   static_cast<int64_t>(i) * update.a.column));
    }
  }

  /// The distance of neighbouring numbers of a type at a value; float's where there are more bits.
  static double last_place(double value, Dtype type) {
    const int bits = type == Dtype::bf16 ? 8 : type == Dtype::f16 ? 11 : 24;
    const int least = type == Dtype::f16 ? -14 : -126;
    const int exponent = value == 0 ? least : std::max(std::ilogb(value), least);
    return std::ldexp(1.0, exponent - bits + 1);
  }

  const std::vector<double>& values_of(const SafetensorsFile& file, const SafetensorsEntry& entry) {
    auto [found, added] = values_.try_emplace(&entry);
    if (added) found->second = elements(file, entry.name, 0, entry.numel());
    return found->second;
  }

  ModelTensors base_, merged_;
  std::map<const SafetensorsEntry*, std::vector<double>> values_;
  MergeCheck result_;
};

}  // namespace

MergeCheck check_merged(const fs::path& base, const std::vector<MergedFrom>& adapters,
                        const fs::path& merged) {
  const ModelConfig model = ModelConfig::load(merged);
  std::deque<SafetensorsFile> files;
  Updates updates;
  for (const auto& [directory, weight] : adapters) {
    const Json config = Json::load(directory / "adapter_config.json");
    const bool peft = config.find("peft_type") != nullptr;
    const auto& file = files.emplace_back(
        directory / (peft ? "adapter_model.safetensors" : "adapters.safetensors"));
    AdapterUpdates of(file, model, weight, updates);
    if (peft)
      of.add_peft(config);
    else
      of.add_mlx(config);
  }
  return RowCheck(base, merged).run(updates);
}

}  // namespace mixtral
