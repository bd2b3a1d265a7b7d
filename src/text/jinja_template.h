#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_interpreter.h"

namespace mixtral {

/// A Jinja template as transformers renders chat templates: trim_blocks, lstrip_blocks, loop
/// controls, {% generation %}, raise_exception, strftime_now, and a tojson that writes as Python's
/// json.dumps. It reads no files, changes nothing of what it is given, and is bounded in steps,
/// depth and size. Immutable, so one may serve many threads.
class JinjaTemplate {
 public:
  /// Throws Error "SOURCE:LINE: reason" where the template cannot be parsed, or is longer than 1
  /// MB.
  JinjaTemplate(std::string_view text, std::string_view source);

  struct Rendered {
    std::string text;
    std::vector<jinja::GeneratedSpan> generated;  // what {% generation %} marks, in bytes
  };
  /// Renders with a dictionary of variables. Throws Error "SOURCE:LINE: reason" where Python would,
  /// where the template raises an exception, and past a bound.
  Rendered render(const jinja::Value& variables) const;

  /// Whether the template marks the assistant's answers with {% generation %}.
  bool marks_answers() const { return marks_answers_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_, source_;
  jinja::Body body_;
  bool marks_answers_ = false;
};

/// A conversation as transformers hands it to a template: keys of messages that are null are left
/// out, and reasoning_content, thinking and reasoning fill one another. Throws Error naming the
/// source where the messages are empty or are not objects.
jinja::Value template_messages(const jinja::Value& messages, std::string_view source);

}  // namespace mixtral
