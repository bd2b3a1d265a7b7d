#include "data/control_text.h"

#include <array>
#include <utility>

namespace mixtral {

std::vector<std::string> spelled_controls(const Tokenizer& tokenizer, std::string_view text) {
  struct Label {
    std::string text;
    bool found = false;
  };
  std::vector<Label> labels;
  std::array<std::vector<size_t>, 256> by_first;  // into labels
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_control(id)) continue;
    std::string label = tokenizer.label(id);
    if (label.size() < 2) continue;
    by_first[static_cast<unsigned char>(label.front())].push_back(labels.size());
    labels.push_back({std::move(label)});
  }
  // One pass: some vocabularies have hundreds of control tokens, and data may be large.
  for (size_t at = 0; at < text.size(); ++at)
    for (const size_t i : by_first[static_cast<unsigned char>(text[at])])
      if (!labels[i].found) labels[i].found = text.substr(at).starts_with(labels[i].text);
  std::vector<std::string> found;
  for (Label& label : labels)
    if (label.found) found.push_back(std::move(label.text));
  return found;
}

}  // namespace mixtral
