#include "train/adapter_checkpoint.h"

namespace mixtral {

std::map<std::string, FileChecksum> TrainedAdapter::save(const std::filesystem::path& directory) {
  auto sums = adapter_.save(directory);
  if (chat_) save_chat_template_name(directory, *chat_);
  return sums;
}

void TrainedAdapter::load(const std::filesystem::path& directory) {
  adapter_.load_values(AdapterFile::load(directory, config_));
}

}  // namespace mixtral
