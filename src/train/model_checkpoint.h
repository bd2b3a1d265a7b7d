#pragma once

#include "model/checkpoint.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/trainer.h"

namespace mixtral {

/// A whole model under training: a checkpoint holds it as a Hugging Face model directory, with its
/// tokenizer.
class WholeModel : public TrainedModel {
 public:
  /// `tokenizer` may be null. Weights are saved in f32, or f64 where they are trained in it.
  /// `chat`, if given, is noted beside them as the template that they were trained with.
  WholeModel(Backend& backend, Mixtral& model, const Tokenizer* tokenizer,
             std::optional<ChatTemplate> chat = std::nullopt)
      : backend_(backend), model_(model), tokenizer_(tokenizer), chat_(chat) {}

  nn::ParameterSource parameters() override { return model_.parameters(); }
  std::vector<nn::ParameterStore::Group> groups() override { return model_.store().groups(); }
  std::map<std::string, FileChecksum> save(const std::filesystem::path& directory) override;
  void load(const std::filesystem::path& directory) override;
  int64_t bytes() override { return model_.store().value_bytes(); }

 private:
  Backend& backend_;
  Mixtral& model_;
  const Tokenizer* tokenizer_;
  std::optional<ChatTemplate> chat_;
};

}  // namespace mixtral
