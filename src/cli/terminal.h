#pragma once

#include <string>
#include <string_view>

namespace mixtral {

/// Columns of the terminal that `file` is; where it does not say, COLUMNS or 80.
int terminal_width(int file);

/// What a terminal can show.
struct TerminalStyle {
  bool colour = false;   // also as the user wants it: NO_COLOR turns it off
  bool unicode = false;  // the locale is UTF-8
};
TerminalStyle terminal_style(int file);

/// Columns that a text takes, escape sequences aside; every character counts as one.
int shown_width(std::string_view text);

}  // namespace mixtral
