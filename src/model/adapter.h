#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/checksum.h"
#include "model/adapter_file.h"
#include "model/mixtral.h"
#include "model/peft_writer.h"
#include "nn/lora.h"

namespace mixtral {

/// A LoRA adapter that is trained, or merged, as the model's own (kOwnAdapter): wraps the
/// projections that it changes, and owns the updates' memory. The model must outlive it, and takes
/// its plain projections back when it goes. Several on one model add up.
class Adapter {
 public:
  struct Options {
    bool trainable = false;
    uint64_t seed = 0;  // of a new adapter's A matrices; B starts at zero
  };

  /// Wraps `model`'s projections. Modules without values are new ones.
  Adapter(Backend& backend, Mixtral& model, AdapterFile file, const Options& options);
  ~Adapter();
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  /// The updates' parameters alone; the model's own enumeration has them too.
  nn::ParameterSource parameters();
  const nn::ParameterStore& store() const { return *store_; }
  const AdapterFile& file() const { return file_; }

  /// Takes the values of a file that has the same modules. Throws Error naming the first one that
  /// differs.
  void load_values(const AdapterFile& file);

  /// Writes adapter_config.json and adapter_model.safetensors as PEFT loads them. Returns the
  /// checksums of the weight file. The directory must exist.
  std::map<std::string, FileChecksum> save(const std::filesystem::path& directory);

  /// Adds the updates to the model's weights, which must be f32 or f64, and takes the wrappers off.
  void merge();

 private:
  struct Wrapped {
    std::unique_ptr<nn::Projection>* place = nullptr;  // where the model keeps it
    nn::Lora* lora = nullptr;
  };

  void set_values(const AdapterFile& file);
  void wrap(std::unique_ptr<nn::Projection>& place, std::vector<nn::LoraBranch> branches);
  void unwrap();

  Backend& backend_;
  Mixtral& model_;
  AdapterFile file_;
  PeftLayout layout_;
  std::vector<Wrapped> wrapped_;
  std::unique_ptr<nn::ParameterStore> store_;
};

/// Writes `base` (a model directory) with an adapter's updates added to it, as a model directory in
/// the base's dtype. Sums are f64 and one tensor is in memory at a time, so a model of any size can
/// be merged. `weight` scales the updates; several adapters are added in order. Returns how many
/// tensors were changed; `note` is told of each. Throws Error when the base is quantized, or ties
/// its embeddings and an adapter changes lm_head.
struct WeightedAdapter {
  AdapterFile file;
  double weight = 1;
};
struct MergedTensor {
  std::string name;
  double change = 0;  // the update's norm by that of the weights before
};
int64_t merge_adapters(const std::filesystem::path& base,
                       const std::vector<WeightedAdapter>& adapters,
                       const std::filesystem::path& out,
                       const std::function<void(const MergedTensor&)>& note = {});

}  // namespace mixtral
