#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace mixtral {
namespace {

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word_character(last_character(text).code);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(first_character(text).code);
}

size_t spaces_at_end(std::string_view text) {
  size_t count = 0;
  while (count < text.size()) {
    const Character c = last_character(text.substr(0, text.size() - count));
    if (!is_white_space(c.code)) break;
    count += c.length;
  }
  return count;
}

size_t spaces_at_start(std::string_view text) {
  size_t count = 0;
  while (count < text.size()) {
    const Character c = first_character(text.substr(count));
    if (!is_white_space(c.code)) break;
    count += c.length;
  }
  return count;
}

}  // namespace

bool is_control_like(const AddedToken& token) {
  const std::string_view text = token.content;
  if (token.special) return true;
  if (text.size() < 3 || text.find(' ') != std::string_view::npos) return false;
  return (text.front() == '<' && text.back() == '>') || (text.front() == '[' && text.back() == ']');
}

AddedToken read_added_token(const Json& json) {
  AddedToken token;
  token.content = json.at("content").as_string();
  const auto flag = [&](const char* key) {
    const Json* value = json.find(key);
    return value != nullptr && !value->is_null() && value->as_bool();
  };
  token.special = flag("special");
  token.lstrip = flag("lstrip");
  token.rstrip = flag("rstrip");
  token.single_word = flag("single_word");
  token.normalized = flag("normalized");
  return token;
}

void TokenFinder::add(std::string_view content, const AddedToken& token) {
  if (content.empty()) return;
  trie_.insert(content, static_cast<int32_t>(tokens_.size()));
  tokens_.push_back(token);
}

std::vector<Segment> TokenFinder::split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;
  const auto text_until = [&](size_t end) {
    if (done < end) segments.push_back({-1, text.substr(done, end - done)});
  };
  for (size_t at = 0; !empty() && at < text.size();) {
    const auto match = trie_.longest_match(text.substr(at));
    if (match.length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(match.value)];
    size_t begin = at, end = at + match.length;
    at = end;
    if (token.single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))))
      continue;
    // White space that the last token took is not there any more.
    if (token.lstrip) begin = std::max(begin - spaces_at_end(text.substr(0, begin)), done);
    if (token.rstrip) end += spaces_at_start(text.substr(end));
    text_until(begin);
    segments.push_back({token.id, text.substr(std::min(begin, end), end - std::min(begin, end))});
    done = std::max(done, end);
  }
  text_until(text.size());
  return segments;
}

}  // namespace mixtral
