#include "cli/command_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/nearest.h"
#include "base/printable.h"

namespace mixtral {

const OptionRow* CommandRow::find(const std::string& option) const {
  for (const OptionRow& row : options)
    if (std::ranges::count(row.long_names, option) > 0 || row.positional == option) return &row;
  return nullptr;
}

const CommandRow& find_command(const CommandRow& root, std::span<const std::string> words) {
  const CommandRow* command = &root;
  for (const std::string& word : words) {
    const auto next = std::ranges::find(command->commands, word, &CommandRow::name);
    if (next == command->commands.end()) {
      std::vector<std::string> names;
      names.reserve(command->commands.size());
      for (const CommandRow& row : command->commands) names.push_back(row.name());
      const std::string close = nearest(word, names);
      throw UsageError(fmt::format(
          "{} has no command '{}'{}; `{} --help` explains", command->path, printable(word),
          close.empty() ? "" : fmt::format(" (did you mean {}?)", close), command->path));
    }
    command = &*next;
  }
  return *command;
}

}  // namespace mixtral
