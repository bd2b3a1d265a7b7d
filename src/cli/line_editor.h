#pragma once

#include <optional>
#include <string>

namespace mixtral {

/// Reads lines from the user: on a terminal with arrow keys and history, elsewhere as they come.
class LineEditor {
 public:
  LineEditor();

  bool interactive() const { return interactive_; }
  /// A line without its end, or nothing at the end of the input. A line that ends in a backslash
  /// goes on with the next one.
  std::optional<std::string> read(const std::string& prompt);

 private:
  std::optional<std::string> read_one(const std::string& prompt);

  bool interactive_;
};

}  // namespace mixtral
