#pragma once

#include <span>
#include <string>
#include <vector>

namespace mixtral {

/// One option of a command, as help, completions and the manual show it.
struct OptionRow {
  std::string short_name;               // "-m"; may be empty
  std::vector<std::string> long_names;  // "--model"; the first is the one to show
  std::string positional;               // its name where it may also stand alone: "model"
  std::string value;                    // "N", "X" or "TEXT"; empty for a flag
  std::vector<std::string> choices;     // when only these are values
  std::string description, group;
  std::string initial;  // the value without the option, as text; empty when there is none to show
  bool required = false;
  bool repeated = false;

  /// "--model", or the positional's name.
  const std::string& name() const { return long_names.empty() ? positional : long_names.front(); }
};

/// A command with its options and the commands below it.
struct CommandRow {
  std::string path;  // "mixtral data check"
  std::string description, footer;
  std::vector<OptionRow> options;
  std::vector<CommandRow> commands;

  std::string name() const { return path.substr(path.rfind(' ') + 1); }
  const OptionRow* find(const std::string& option) const;
};

/// The command that words such as {"data", "check"} name below `root`. Throws UsageError, with the
/// nearest name, when there is none.
const CommandRow& find_command(const CommandRow& root, std::span<const std::string> words);

}  // namespace mixtral
