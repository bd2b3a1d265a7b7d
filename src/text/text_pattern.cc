#include "text/text_pattern.h"

#include <fmt/format.h>

#include "base/error.h"

namespace mixtral {

TextPattern::TextPattern(const Json& json) {
  if (const Json* literal = json.find("String"); literal != nullptr) {
    literal_ = literal->as_string();
    if (literal_.empty()) {
      throw Error(fmt::format("{}: the pattern is empty; expected some text", literal->where()));
    }
    return;
  }
  const Json& regex = json.at("Regex");
  pattern_ = std::make_shared<Pattern>(regex.as_string(), regex.where());
}

TextPattern::TextPattern(std::string_view expression, std::string_view source)
    : pattern_(std::make_shared<Pattern>(expression, source)) {}

std::vector<TextRange> TextPattern::find(std::string_view text) const {
  std::vector<TextRange> matches;
  if (pattern_) {
    Pattern::Matches found(*pattern_, text);
    for (TextRange range; found.next(range.begin, range.end);) matches.push_back(range);
    return matches;
  }
  for (size_t at = 0; (at = text.find(literal_, at)) != std::string_view::npos;) {
    matches.push_back({at, at + literal_.size()});
    at += literal_.size();
  }
  return matches;
}

std::string replace_matches(std::string_view text, const TextPattern& pattern,
                            std::string_view content) {
  std::string result;
  result.reserve(text.size());
  size_t done = 0;
  for (const TextRange& match : pattern.find(text)) {
    result += text.substr(done, match.begin - done);
    result += content;
    done = match.end;
  }
  result += text.substr(done);
  return result;
}

}  // namespace mixtral
