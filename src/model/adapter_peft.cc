// Adapters of PEFT: adapter_model.safetensors. Tensors of single experts (w1, w2, w3) and of
// block_sparse_moe.gate are from transformers 4, where these are modules; those of mlp.experts and
// mlp.gate are from transformers 5, where they are parameters. Each is looked up in the patterns
// under the name that it had where it was written.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "io/json.h"
#include "io/model_tensors.h"
#include "model/adapter_reader.h"
#include "model/base_copies.h"
#include "model/peft_config.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

class PeftReader {
 public:
  PeftReader(const fs::path& file, const Json& json, const ModelConfig& model, const fs::path& base)
      : config_(json), tensors_(file), reader_(tensors_, model), copies_(base) {}

  AdapterFile read() {
    int64_t stored_copies = 0;
    for (const std::string& stored : tensors_.names()) {
      const TensorEntry& entry = tensors_.at(stored);
      std::string_view name = stored;
      take_prefix(name, kPeftPrefix);
      if (!add_update(entry, name)) {
        if (!copies_.accept(tensors_, entry, name)) reader_.no_place(entry);
        ++stored_copies;
      }
    }
    if (config_.saves_modules() && stored_copies == 0)
      throw Error(fmt::format(
          "{}: adapter_config.json has modules_to_save, but no tensor of theirs is there; save the "
          "adapter again with PEFT",
          tensors_.path().string()));
    AdapterFile adapter;
    adapter.rslora = config_.rslora();
    adapter.dropout = config_.dropout();
    adapter.base_model = config_.base_model();
    adapter.modules = reader_.finish();
    return adapter;
  }

 private:
  /// Adds a lora_A or lora_B; false for any other tensor, and for a module that is not the model's.
  bool add_update(const TensorEntry& entry, std::string_view name) {
    for (const char matrix : {'A', 'B'}) {
      const std::string suffix = fmt::format(".lora_{}.weight", matrix);
      if (!name.ends_with(suffix)) continue;
      const std::string module(name.substr(0, name.size() - suffix.size()));
      auto place = place_of_module(module);
      if (!place) place = place_of_packed(entry, module);
      if (!place) return false;
      place->matrix = matrix;
      // In transformers 5 a router has no module of its own: its weight is the target.
      const bool parameter = module.ends_with(".mlp.gate");
      if (adapter_target(place->target).fused)
        add_packed(entry, *place);
      else
        add_matrix(entry, *place, parameter ? module + ".weight" : module);
      return true;
    }
    return false;
  }

  /// The place of "model.layers.L.mlp.experts" and "….base_layer". Of two targeted parameters the
  /// wrapper of gate_up_proj stands inside that of down_proj.
  std::optional<AdapterPlace> place_of_packed(const TensorEntry& entry,
                                              std::string_view module) const {
    if (!take_prefix(module, "model.layers.")) return std::nullopt;
    const auto layer = take_number(module);
    if (!layer || !take_prefix(module, ".mlp.experts")) return std::nullopt;
    const bool inner = module == ".base_layer";
    if (!inner && !module.empty()) return std::nullopt;
    const PackedTargets targets = config_.packed(*layer);
    if (inner && !targets.both()) return std::nullopt;
    if (!targets.gate_up && !targets.down)
      throw Error(fmt::format(
          "{}: tensor {} is of packed experts, but adapter_config.json's target_parameters does "
          "not say which (mlp.experts.gate_up_proj, mlp.experts.down_proj or both)",
          tensors_.path().string(), printable(entry.name)));
    return AdapterPlace{.layer = *layer,
                        .target = inner || !targets.down ? "gate_up_proj" : "down_proj"};
  }

  AdapterScaling scaling_of(const std::string& name) const {
    return {
        .rank = config_.rank_of(name), .alpha = config_.alpha_of(name), .rslora = config_.rslora()};
  }

  /// A [r, inputs] or B [rows, r] of a module or of one expert.
  void add_matrix(const TensorEntry& entry, const AdapterPlace& place, const std::string& name) {
    const TargetShape shape = reader_.shape_at(entry, place);
    const std::vector<int64_t> dims = reader_.dims_of(entry, 2);
    const bool is_a = place.matrix == 'A';
    const int64_t rank = is_a ? dims[0] : dims[1];
    if (rank == 0 || (is_a ? dims[1] != shape.inputs : dims[0] != shape.rows))
      reader_.wrong_shape(
          entry, is_a ? fmt::format("[r, {}]", shape.inputs) : fmt::format("[{}, r]", shape.rows));
    reader_.add(entry, place, {rank, reader_.read(entry)}, scaling_of(name));
  }

  /// A [E·r, inputs] with the expert slowest, or B [rows, r·E] with the expert fastest. Before PEFT
  /// 0.19 a packed parameter's rows were taken for its inputs: A is [E·r, rows], B [inputs, r·E],
  /// and the update is its transpose.
  void add_packed(const TensorEntry& entry, AdapterPlace place) {
    const TargetShape shape = reader_.shape_at(entry, place);
    const std::vector<int64_t> dims = reader_.dims_of(entry, 2);
    const bool is_a = place.matrix == 'A';
    const int64_t packed = is_a ? dims[0] : dims[1], width = is_a ? dims[1] : dims[0];
    const int64_t now = is_a ? shape.inputs : shape.rows;
    const int64_t before = is_a ? shape.rows : shape.inputs;
    if (packed == 0 || packed % shape.groups != 0 || (width != now && width != before))
      reader_.wrong_shape(entry, is_a ? fmt::format("[{} · r, {}]", shape.groups, now)
                                      : fmt::format("[{}, r · {}]", now, shape.groups));
    if (now == before && !config_.exchanged())
      throw Error(fmt::format(
          "{}: tensor {} is of packed experts with as many inputs as outputs, and only "
          "peft_version, which adapter_config.json lacks, tells which is which (they changed "
          "places in PEFT 0.19); add it",
          tensors_.path().string(), printable(entry.name)));
    const bool exchanged = now == before ? *config_.exchanged() : width == before;
    const AdapterScaling scaling =
        scaling_of(fmt::format("model.layers.{}.mlp.experts.{}", place.layer, place.target));
    const int64_t rank = packed / shape.groups;
    std::vector<float> values = reader_.read(entry);
    if (!is_a) values = group_slowest(values, width, rank, shape.groups);
    if (exchanged) {
      values = transposed(values, shape.groups, is_a ? rank : width, is_a ? width : rank);
      place.matrix = is_a ? 'B' : 'A';
    }
    reader_.add(entry, place, {rank, std::move(values)}, scaling);
  }

  /// [rows, r · G] with the group fastest as [G, rows, r].
  static std::vector<float> group_slowest(const std::vector<float>& values, int64_t rows,
                                          int64_t rank, int64_t groups) {
    std::vector<float> result(values.size());
    for (int64_t row = 0; row < rows * rank; ++row)
      for (int64_t g = 0; g < groups; ++g)
        result[static_cast<size_t>(g * rows * rank + row)] =
            values[static_cast<size_t>(row * groups + g)];
    return result;
  }

  /// [G, rows, columns] as [G, columns, rows].
  static std::vector<float> transposed(const std::vector<float>& values, int64_t groups,
                                       int64_t rows, int64_t columns) {
    std::vector<float> result(values.size());
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          result[static_cast<size_t>((g * columns + j) * rows + i)] =
              values[static_cast<size_t>((g * rows + i) * columns + j)];
    return result;
  }

  PeftConfig config_;
  ModelTensors tensors_;
  AdapterReader reader_;
  BaseCopies copies_;
};

}  // namespace

AdapterFile load_peft_adapter(const fs::path& directory, const Json& json, const ModelConfig& model,
                              const fs::path& base) {
  const fs::path file = directory / "adapter_model.safetensors";
  std::error_code error;
  if (!fs::exists(file, error) && fs::exists(directory / "adapter_model.bin", error))
    throw Error(fmt::format(
        "{}: holds its weights in adapter_model.bin, a pickle, which can run any program when it "
        "is read and so is not read here; load it with PEFT and save it again "
        "(PeftModel.from_pretrained(...).save_pretrained(DIR) writes adapter_model.safetensors)",
        directory.string()));
  return PeftReader(file, json, model, base).read();
}

}  // namespace mixtral
