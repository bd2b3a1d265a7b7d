#include "cli/usage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <regex>
#include <vector>

#include "base/nearest.h"

namespace mixtral {
namespace {

/// The command that was being read: "mixtral data check".
std::string path_of(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent ? path_of(*parent) + " " + command.get_name() : command.get_name();
}

/// " (did you mean --out?)" for a word and the names that are known, both without their dashes.
std::string suggestion(const std::string& word, const std::vector<std::string>& known,
                       std::string_view dashes) {
  const std::string close = nearest(word, known);
  return close.empty() ? "" : fmt::format(" (did you mean {}{}?)", dashes, close);
}

}  // namespace

std::string flag_error(const CLI::Error& error) {
  std::string text = error.what();
  // A word where a number should be: "Could not convert: --lr = fast".
  text = std::regex_replace(text, std::regex("^Could not convert: (\\S+) = (.*)$"),
                            "$1 is '$2', expected a number");
  text =
      std::regex_replace(text, std::regex("^(\\S+): Value (\\S+) not in range (\\S+) to (\\S+)$"),
                         "$1 is $2, expected $3 to $4");
  text = std::regex_replace(text, std::regex("^(\\S+): (\\S*) not in \\{(.*)\\}$"),
                            "$1 is '$2', expected one of $3");
  return std::regex_replace(text, std::regex("(\\d)\\.0{6}(?!\\d)"), "$1");
}

std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().back();
  const std::string help = fmt::format("`{} --help` explains", path_of(*command));
  const std::vector<std::string> rest = command->remaining();
  const std::vector<const CLI::App*> inner =
      command->get_subcommands([](const CLI::App*) { return true; });
  if (!inner.empty()) {  // a command that consists of others, and none of them was named
    std::vector<std::string> names;
    for (const CLI::App* each : inner) names.push_back(each->get_name());
    const auto word = std::ranges::find_if(rest, [](const auto& w) { return !w.starts_with("-"); });
    if (word != rest.end())
      return fmt::format("{} has no command '{}'{}; {}", path_of(*command), *word,
                         suggestion(*word, names, ""), help);
    return fmt::format("{} needs a command: {}; {}", path_of(*command), fmt::join(names, ", "),
                       help);
  }
  const auto unknown = std::ranges::find_if(rest, [](const auto& w) { return w.starts_with("-"); });
  if (unknown != rest.end()) {  // also where something else is missing: a misspelt --model
    std::vector<std::string> names;
    for (const CLI::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) names.push_back(name);
    const std::string flag = unknown->substr(0, unknown->find('='));
    const std::string word = flag.substr(std::min(flag.find_first_not_of('-'), flag.size()));
    return fmt::format("{} takes no '{}'{}; {}", path_of(*command), flag,
                       suggestion(word, names, "--"), help);
  }
  return fmt::format("{}; {}", flag_error(error), help);
}

}  // namespace mixtral
