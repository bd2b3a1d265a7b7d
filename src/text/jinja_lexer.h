#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace mixtral::jinja {

/// A piece of a template's source.
struct Token {
  enum class Kind {
    data,             // text between tags
    print_begin,      // {{
    print_end,        // }}
    statement_begin,  // {%
    statement_end,    // %}
    name,
    text,
    number,
    sign,  // operators and punctuation
    end
  };
  Kind kind = Kind::end;
  int line = 1;
  std::string text;  // of data, names, texts and signs
  Value number;
};

/// Splits a template's source as Jinja does with trim_blocks and lstrip_blocks, and without the
/// last newline. Throws Error "SOURCE:LINE: reason".
std::vector<Token> tokenize(std::string_view template_text, std::string_view source);

[[noreturn]] void fail_at(std::string_view source, int line, std::string_view reason);

}  // namespace mixtral::jinja
