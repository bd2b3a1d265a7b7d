#include "text/normalizer.h"

#include <algorithm>

#include "text/utf8.h"

namespace mixtral {

Normalizer::Normalizer(const SentencePieceModel& model, const ByteTrie& user_defined)
    : user_defined_(user_defined),
      space_(model.escape_whitespaces ? kSpaceSymbol : " "),
      dummy_prefix_(model.add_dummy_prefix),
      trim_(model.remove_extra_whitespaces),
      suffix_(model.whitespace_as_suffix) {
  if (!model.charsmap.empty()) charsmap_ = Charsmap(model.charsmap, "the tokenizer");
}

std::string Normalizer::normalize_plainly(std::string_view text, Part part) const {
  const bool dummy = dummy_prefix_ && part == Part::whole;
  std::string result;
  result.reserve(text.size() + text.size() / 2 + space_.size());
  if (dummy && !suffix_) result += space_;
  while (true) {
    const size_t space = text.find(' ');
    result += text.substr(0, space);
    if (space == std::string_view::npos) break;
    result += space_;
    text.remove_prefix(space + 1);
  }
  if (dummy && suffix_) result += space_;
  return result;
}

std::string Normalizer::normalize(std::string_view text, Part part) const {
  const bool dummy = dummy_prefix_ && part == Part::whole;
  if (text.empty()) return {};
  if (charsmap_.empty() && !trim_) return normalize_plainly(text, part);

  // The next rewritten unit of the text, and how many of its bytes that takes.
  struct Unit {
    std::string_view text;
    size_t consumed;
  };
  const auto next_unit = [&]() -> Unit {
    if (const size_t length = user_defined_.longest_match(text).length; length > 0) {
      return {text.substr(0, length), length};
    }
    if (const auto match = charsmap_.longest_match(text); match.length > 0) {
      return {match.replacement, match.length};
    }
    const size_t length = std::max<size_t>(1, utf8_length(text));
    return {text.substr(0, length), length};
  };

  if (trim_) {
    while (!text.empty()) {
      const Unit unit = next_unit();
      if (unit.text != " ") break;
      text.remove_prefix(unit.consumed);
    }
    if (text.empty()) return {};
  }
  std::string result;
  result.reserve(text.size() + text.size() / 2 + space_.size());
  if (dummy && !suffix_) result += space_;
  bool after_space = trim_;
  while (!text.empty()) {
    auto [unit, consumed] = next_unit();
    text.remove_prefix(consumed);
    while (after_space && unit.starts_with(' ')) unit.remove_prefix(1);
    if (!unit.empty()) after_space = unit.ends_with(' ');
    if (!trim_) after_space = false;
    for (const char c : unit) {
      if (c == ' ') {
        result += space_;
      } else {
        result += c;
      }
    }
  }
  while (trim_ && result.ends_with(space_)) result.resize(result.size() - space_.size());
  if (dummy && suffix_) result += space_;
  return result;
}

}  // namespace mixtral
