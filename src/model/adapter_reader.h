#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "io/json.h"
#include "io/tensor_source.h"
#include "model/adapter_file.h"

namespace mixtral {

/// Where a tensor of an adapter belongs: which module, which expert of it, and whether it is A or
/// B.
struct AdapterPlace {
  int64_t layer = -1;
  std::string target;   // a name of adapter_targets()
  int64_t expert = -1;  // of w1, w2, w3; −1 where a tensor holds all experts
  char matrix = 'A';
};

/// What the configuration says of a tensor's module.
struct AdapterScaling {
  int64_t rank = 0;  // 0: the tensor's own
  double alpha = 0;
  bool rslora = false;
};

/// The values of one tensor, [rank, inputs] for A and [rows, rank] for B, per group.
struct AdapterMatrix {
  int64_t rank = 0;
  std::vector<float> values;
};

/// Puts an adapter's tensors together into modules. Each throws Error naming file and tensor.
class AdapterReader {
 public:
  /// Both must outlive it.
  AdapterReader(const TensorSource& tensors, const ModelConfig& config)
      : tensors_(tensors), config_(config) {}

  const TensorSource& tensors() const { return tensors_; }
  const ModelConfig& config() const { return config_; }

  /// Rows, inputs and groups of a place's weight. Throws Error when this model has no such layer or
  /// expert.
  TargetShape shape_at(const TensorEntry& entry, const AdapterPlace& place) const;
  /// A tensor's values, which must be finite.
  std::vector<float> read(const TensorEntry& entry) const;
  std::vector<int64_t> dims_of(const TensorEntry& entry, size_t rank) const;
  [[noreturn]] void wrong_shape(const TensorEntry& entry, const std::string& expected) const;
  /// That a tensor belongs nowhere.
  [[noreturn]] void no_place(const TensorEntry& entry) const;

  /// Adds one tensor. Of an expert's place the matrix is that of the expert, else of all groups.
  void add(const TensorEntry& entry, const AdapterPlace& place, AdapterMatrix matrix,
           const AdapterScaling& scaling);

  /// All modules, in the order of layers and targets; every A with its B. An expert whose A and B
  /// are zero is left out of its module: they change nothing, and have no gradient either.
  std::vector<AdapterModule> finish();

 private:
  AdapterModule& module_for(const TensorEntry& entry, const AdapterPlace& place, int64_t rank,
                            const AdapterScaling& scaling);
  void note(const TensorEntry& entry, const AdapterPlace& place);
  std::vector<int64_t> experts_in_use(const AdapterModule& module) const;

  const TensorSource& tensors_;
  const ModelConfig& config_;
  std::map<std::pair<int64_t, std::ptrdiff_t>, AdapterModule> modules_;
  std::map<std::tuple<int64_t, std::string, int64_t>, int> halves_;  // bits: A is 1, B is 2
};

/// "model.layers.3.self_attn.q_proj" and the like: modules with one matrix, and single experts'
/// (block_sparse_moe.experts.0.w1). Nothing for any other name.
std::optional<AdapterPlace> place_of_module(std::string_view name);

/// A matrix [rows, columns] as [columns, rows].
std::vector<float> transposed(const std::vector<float>& values, int64_t rows, int64_t columns);

/// Takes a prefix, or a decimal number of nine digits at most, off a text.
bool take_prefix(std::string_view& text, std::string_view prefix);
std::optional<int64_t> take_number(std::string_view& text);

/// Reads adapter_model.safetensors by PEFT's rules. `base` is the model directory with which stored
/// copies of its tensors are compared; empty when there is none.
AdapterFile load_peft_adapter(const std::filesystem::path& directory, const Json& json,
                              const ModelConfig& model, const std::filesystem::path& base);
/// Reads adapters.safetensors by mlx-lm's.
AdapterFile load_mlx_adapter(const std::filesystem::path& directory, const Json& json,
                             const ModelConfig& model);
/// Reads a GGUF file of general.type "adapter" by llama.cpp's.
AdapterFile load_gguf_adapter(const std::filesystem::path& file, const ModelConfig& model);
/// Reads lora.safetensors by those of mistral-inference; params.json beside it may say the scaling.
AdapterFile load_mistral_adapter(const std::filesystem::path& directory, const ModelConfig& model);

}  // namespace mixtral
