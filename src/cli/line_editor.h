#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mixtral {

/// Reads lines from the user. On a terminal with arrow keys, history and completion; Ctrl-C clears
/// the line, and on an empty one a second Ctrl-C ends the input, as Ctrl-D does. Elsewhere lines
/// come as they are.
class LineEditor {
 public:
  struct Options {
    std::vector<std::string> commands;  // that Tab completes: "/save"; behind one, file names
    std::filesystem::path history;      // a file for the lines of all sessions; empty: none
  };
  explicit LineEditor(Options options);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  bool interactive() const { return terminal_ != nullptr; }
  /// A line without its end, or nothing at the end of the input. A line that ends in a backslash
  /// goes on with the next one.
  std::optional<std::string> read(const std::string& prompt);

 private:
  struct Terminal;
  std::optional<std::string> read_one(const std::string& prompt);

  std::unique_ptr<Terminal> terminal_;  // null where there is none
};

/// The ways in which a line could go on: those of `commands` that begin with it, or, behind a
/// command and a space, the files whose names do. Each is the whole line.
std::vector<std::string> completions(const std::string& line,
                                     const std::vector<std::string>& commands);

/// A file of that name in the folder for state of XDG: $XDG_STATE_HOME/mixtral, or
/// ~/.local/state/mixtral. Empty where there is no home.
std::filesystem::path state_file(const std::string& name);

}  // namespace mixtral
