#include "train/model_checkpoint.h"

namespace mixtral {

std::map<std::string, FileChecksum> WholeModel::save(const std::filesystem::path& directory) {
  auto sums = save_model(backend_, model_, directory, model_.options().weights);
  if (tokenizer_) tokenizer_->save(directory);
  if (chat_) save_chat_template_name(directory, *chat_);
  return sums;
}

void WholeModel::load(const std::filesystem::path& directory) {
  load_weights(backend_, model_, ModelTensors(directory));
}

}  // namespace mixtral
