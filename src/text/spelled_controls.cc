#include "text/spelled_controls.h"

#include <algorithm>

#include "text/unicode.h"

namespace mixtral {
namespace {

TokenFinder finder_of(const std::vector<std::string>& texts) {
  TokenFinder finder;
  for (size_t i = 0; i < texts.size(); ++i)
    finder.add(texts[i], {.id = static_cast<int32_t>(i), .content = texts[i]});
  return finder;
}

}  // namespace

SpelledControls::SpelledControls(const Tokenizer& tokenizer) : texts_(tokenizer.control_texts()) {
  finder_ = finder_of(texts_);
}

std::vector<std::string> SpelledControls::find(std::string_view text) const {
  std::vector<std::string> found;
  for (const Segment& part : finder_.split(text)) {
    if (part.id < 0) continue;
    const std::string& control = texts_[static_cast<size_t>(part.id)];
    if (std::ranges::find(found, control) == found.end()) found.push_back(control);
  }
  return found;
}

std::string mark_as_plain(std::string_view text, const std::vector<std::string>& controls) {
  std::string result;
  for (const Segment& part : finder_of(controls).split(text)) {
    const size_t first = part.id < 0 ? 0 : first_character(part.text).length;
    result += part.text.substr(0, first);
    if (part.id >= 0) result += kPlainTextMark;
    result += part.text.substr(first);
  }
  return result;
}

std::string without_plain_marks(std::string_view text) {
  std::string result;
  while (true) {
    const size_t at = text.find(kPlainTextMark);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    text.remove_prefix(at + kPlainTextMark.size());
  }
}

}  // namespace mixtral
