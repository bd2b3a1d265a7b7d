#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

/// What the program says on standard error. All of it goes this way, so that text from outside
/// reaches the terminal escaped (base/printable.h), and so that a standard error that cannot be
/// written (a full disk, a closed terminal, a reader that is gone) never ends a run: what cannot be
/// written is dropped. No function here throws for that, or raises SIGPIPE.
namespace mixtral::messages {

/// One line, whose end is added. Of a line of more than 4 KiB the middle is left out.
void line(std::string_view text);
/// The same of a formatted text.
template <class... Values>
void print(fmt::format_string<Values...> format, Values&&... values) {
  line(fmt::format(format, std::forward<Values>(values)...));
}
/// Each line of a text that the program itself made, such as a table.
void lines(std::string_view text);

/// Draws `text` in place of the terminal's current line; the cursor stays in it.
void redraw(std::string_view text);
/// The same of what the program itself made for the terminal, control sequences included, from
/// wherever the cursor is.
void draw(std::string_view text);
/// Empties the terminal's current line.
void clear();
/// Ends a line that was drawn.
void end_line();

}  // namespace mixtral::messages
