#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/adapter_file.h"
#include "tensor/tensor.h"

namespace mixtral {

/// How an adapter of this program is written so that PEFT reads the same updates, with transformers
/// 4, where every expert has modules w1, w2 and w3, and with transformers 5, where PEFT turns these
/// into the packed parameters gate_up_proj and down_proj.
class PeftLayout {
 public:
  PeftLayout(const AdapterFile& adapter, const ModelConfig& model);

  /// The name of a module's lora_A or lora_B; `expert` for w1, w2, w3.
  std::string name(const AdapterModule& module, char matrix, int64_t expert) const;

  /// Tensors of zeros that are written beside the adapter's own. PEFT packs w1 and w3 of all
  /// experts of a layer, and expects down_proj beside them: those that are not tuned are updates of
  /// zero, which stay zero when PEFT goes on training.
  const std::vector<std::pair<std::string, Shape>>& zeros() const { return zeros_; }

  /// The text of adapter_config.json.
  std::string config() const;

  /// What PEFT cannot do with the adapter, a sentence each; to be said before training.
  std::vector<std::string> notes() const;

 private:
  void add_zeros(const AdapterFile& adapter, const ModelConfig& model);
  void name_targets(const ModelConfig& model);
  bool on_parameters() const;

  AdapterFile all_;  // the modules with those of zeros, and all experts of each
  std::vector<std::pair<std::string, Shape>> zeros_;
  std::vector<std::string> target_modules_, target_parameters_;
  std::vector<std::string> parameters_;  // target_parameters, with what PEFT adds to them
};

}  // namespace mixtral
