#include "serve/tool_reader.h"

#include <algorithm>

#include "serve/openai_json.h"

namespace mixtral::serve {
namespace {

constexpr size_t kIdSize = 9;  // as Mistral's templates demand of a call
constexpr std::string_view kName = "{\"name\": \"";
constexpr std::string_view kArguments = "\", \"arguments\": ";

enum class Found { yes, no, perhaps };

// Takes `word` off the front of `text`; perhaps: the text ends within it.
Found take(std::string_view& text, std::string_view word) {
  if (text.starts_with(word)) {
    text.remove_prefix(word.size());
    return Found::yes;
  }
  return word.starts_with(text) ? Found::perhaps : Found::no;
}

}  // namespace

ChatDelta ToolReader::push(std::string_view text) {
  held_ += text;
  ChatDelta delta;
  while (advance(delta)) {
  }
  return delta;
}

ChatDelta ToolReader::finish() {
  ChatDelta delta;
  if (state_ == State::start || state_ == State::text) delta.content = std::move(held_);
  held_.clear();
  return delta;
}

// Whether there was something to do.
bool ToolReader::advance(ChatDelta& delta) {
  switch (state_) {
    case State::start:
    case State::open:
      return read_start(delta);
    case State::text:
      return read_text(delta);
    case State::name:
      return read_name(delta);
    case State::arguments:
      return read_arguments(delta);
    case State::between: {
      const size_t next = held_.find(kName);
      if (next == std::string::npos) return false;
      held_.erase(0, next + kName.size());
      state_ = State::name;
      return true;
    }
  }
  return false;
}

// The marker, which may be hidden, blanks, and the beginning of a call; or text.
bool ToolReader::read_start(ChatDelta& delta) {
  std::string_view rest = held_;
  Found found = take(rest, marker_);
  if (found == Found::perhaps) return false;
  for (int i = 0; i < 2 && !rest.empty() && (rest[0] == ' ' || rest[0] == '\n'); ++i)
    rest.remove_prefix(1);
  if (rest.empty()) return false;
  found = Found::yes;
  if (format_ == ToolFormat::mistral) found = take(rest, "[");
  if (found == Found::yes) found = take(rest, kName);
  if (found == Found::perhaps) return false;
  if (found == Found::no) {
    if (state_ == State::open) {  // a marker that no call follows
      delta.content += marker_;
      held_.erase(0, marker_.size());
    }
    state_ = State::text;
    return true;
  }
  held_.erase(0, held_.size() - rest.size());
  state_ = State::name;
  return true;
}

bool ToolReader::read_text(ChatDelta& delta) {
  const size_t marker = held_.find(marker_);
  size_t keep = 0;  // the longest tail that may begin the marker
  if (marker == std::string::npos) {
    for (size_t n = std::min(held_.size(), marker_.size() - 1); n > keep; --n)
      if (marker_.starts_with(std::string_view(held_).substr(held_.size() - n))) keep = n;
  }
  const size_t ready = marker != std::string::npos ? marker : held_.size() - keep;
  delta.content += held_.substr(0, ready);
  held_.erase(0, ready);
  if (marker == std::string::npos) return false;
  state_ = State::open;
  return true;
}

bool ToolReader::read_name(ChatDelta& delta) {
  const size_t end = held_.find(kArguments);
  if (end == std::string::npos) return false;
  delta.tool_calls.push_back(
      {.index = calls_++, .id = random_id(kIdSize), .name = held_.substr(0, end)});
  held_.erase(0, end + kArguments.size());
  state_ = State::arguments;
  depth_ = 0;
  return true;
}

bool ToolReader::read_arguments(ChatDelta& delta) {
  if (held_.empty()) return false;
  size_t read = 0;
  bool ended = false;
  while (read < held_.size() && !ended) {
    const char c = held_[read++];
    if (in_string_) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == '"')
        in_string_ = false;
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      ended = --depth_ == 0;
    }
  }
  if (delta.tool_calls.empty() || delta.tool_calls.back().index != calls_ - 1)
    delta.tool_calls.push_back({.index = calls_ - 1});
  delta.tool_calls.back().arguments += held_.substr(0, read);
  held_.erase(0, read);
  if (ended) state_ = State::between;
  return true;
}

}  // namespace mixtral::serve
