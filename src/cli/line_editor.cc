#include "cli/line_editor.h"

#include <editline/readline.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <iostream>
#include <memory>

namespace mixtral {

LineEditor::LineEditor()
    : interactive_(::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) {
  // The library counts characters, not bytes, as the locale says.
  if (interactive_ && !std::setlocale(LC_CTYPE, "C.UTF-8")) std::setlocale(LC_CTYPE, "");
}

std::optional<std::string> LineEditor::read_one(const std::string& prompt) {
  if (!interactive_) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return line;
  }
  const std::unique_ptr<char, decltype(&std::free)> line(::readline(prompt.c_str()), &std::free);
  if (!line) return std::nullopt;
  if (*line) ::add_history(line.get());
  return std::string(line.get());
}

std::optional<std::string> LineEditor::read(const std::string& prompt) {
  auto line = read_one(prompt);
  while (line && line->ends_with('\\')) {
    line->back() = '\n';
    const auto more = read_one("... ");
    if (!more) break;
    *line += *more;
  }
  return line;
}

}  // namespace mixtral
