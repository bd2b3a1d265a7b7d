#include "data/control_text.h"

namespace mixtral {

std::vector<std::string> spelled_controls(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> found;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_control(id)) continue;
    std::string label = tokenizer.label(id);
    if (label.size() > 1 && text.find(label) != std::string_view::npos)
      found.push_back(std::move(label));
  }
  return found;
}

}  // namespace mixtral
