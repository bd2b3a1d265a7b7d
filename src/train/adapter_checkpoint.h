#pragma once

#include "model/adapter.h"
#include "text/chat_template.h"
#include "train/trainer.h"

namespace mixtral {

/// An adapter under training, on a base that stays as it is: a checkpoint holds it as PEFT loads
/// it (adapter_config.json, adapter_model.safetensors), with the optimizer's state beside it.
class TrainedAdapter : public TrainedModel {
 public:
  /// `chat`, if given, is noted beside the adapter as the template that it was trained with.
  TrainedAdapter(const ModelConfig& config, Adapter& adapter,
                 std::optional<ChatTemplate> chat = std::nullopt)
      : config_(config), adapter_(adapter), chat_(chat) {}

  nn::ParameterSource parameters() override { return adapter_.parameters(); }
  std::vector<nn::ParameterStore::Group> groups() override { return adapter_.store().groups(); }
  std::map<std::string, FileChecksum> save(const std::filesystem::path& directory) override;
  void load(const std::filesystem::path& directory) override;
  int64_t bytes() override { return adapter_.store().value_bytes(); }

 private:
  const ModelConfig& config_;
  Adapter& adapter_;
  std::optional<ChatTemplate> chat_;
};

}  // namespace mixtral
