#pragma once

#include <string>
#include <string_view>

#include "serve/chat_format.h"
#include "serve/tool_format.h"

namespace mixtral::serve {

/// Reads an answer that keeps to tool_grammar(), piece by piece: text before the first call, then
/// each call's name and, as they come, its arguments. Text that may be the beginning of a call is
/// held back until that is decided. Each call gets an id of nine letters and digits, as Mistral's
/// templates want them back.
class ToolReader : public ReplyReader {
 public:
  explicit ToolReader(ToolFormat format) : format_(format), marker_(tool_marker(format)) {}
  ChatDelta push(std::string_view text) override;
  ChatDelta finish() override;
  bool calls_tools() const override { return calls_ > 0; }

 private:
  enum class State { start, text, open, name, arguments, between };
  bool advance(ChatDelta& delta);
  bool read_start(ChatDelta& delta);
  bool read_text(ChatDelta& delta);
  bool read_name(ChatDelta& delta);
  bool read_arguments(ChatDelta& delta);

  const ToolFormat format_;
  const std::string_view marker_;
  State state_ = State::start;
  std::string held_;  // not read yet
  size_t calls_ = 0;
  int depth_ = 0;  // of the arguments' brackets
  bool in_string_ = false, escaped_ = false;
};

}  // namespace mixtral::serve
