#include "cli/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "cli/common_options.h"

namespace mixtral {
namespace {

constexpr size_t kWidth = 80, kNameColumns = 27;
constexpr size_t kMostLines = 40, kMostExamples = 3, kShortChoices = 16;

/// UTF-8 characters, which take a column each in the languages of these texts.
size_t columns(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of(" \n"), text.size());
    if (end > 0) words.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

/// What comes before the first "; ", ". " or " (" that is not within brackets or too early.
std::string first_clause(const std::string& text) {
  constexpr size_t kLeast = 12;
  int open = 0;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == '(' || text[i] == '{') ++open;
    if (text[i] == ')' || text[i] == '}') --open;
    if (open == 0 && i >= kLeast && (text[i] == ';' || text[i] == '.') && text[i + 1] == ' ')
      return text.substr(0, i);
    if (open == 1 && text[i] == '(' && i > kLeast &&
        text.substr(i).starts_with("(default:") == false)
      return text.substr(0, i - 1);
  }
  return text;
}

std::string value_text(const OptionRow& option) {
  if (option.value.empty()) return "";
  const std::string choices = fmt::format("{}", fmt::join(option.choices, "|"));
  return " " + (!choices.empty() && choices.size() <= kShortChoices ? choices : option.value) +
         (option.repeated ? " ..." : "");
}

enum class Names { first, all };

/// "  -m, --model TEXT"
std::string names_text(const OptionRow& option, Names which) {
  std::string text = option.short_name.empty() ? "      " : "  " + option.short_name + ", ";
  if (option.long_names.empty()) return "  " + option.positional + value_text(option);
  text +=
      which == Names::first ? option.name() : fmt::format("{}", fmt::join(option.long_names, ", "));
  return text + value_text(option);
}

/// Names on the left, the description on the right.
std::string entry(const std::string& names, const std::string& description) {
  std::string text = wrapped(description, kNameColumns + 2);
  if (columns(names) > kNameColumns) return names + "\n" + text;
  return names + text.substr(std::min(columns(names), text.size()));
}

std::string usage_line(const CommandRow& command) {
  std::string text = "Usage: " + command.path;
  if (!command.commands.empty()) text += " COMMAND";
  for (const OptionRow& option : command.options) {
    if (option.positional.empty()) continue;
    std::string name = option.positional;
    std::ranges::transform(name, name.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    text += option.required && option.long_names.empty() ? " " + name : fmt::format(" [{}]", name);
  }
  return text + " [options]\n";
}

std::string commands_text(const CommandRow& command) {
  if (command.commands.empty()) return "";
  std::string text = "\nCommands:\n";
  for (const CommandRow& inner : command.commands)
    text += entry("  " + inner.name(), first_clause(inner.description));
  return text;
}

/// An example's command line, broken with backslashes where it is long.
std::string example_text(const std::string& example) {
  std::string text, line = " ";
  for (const std::string& word : words_of(example)) {
    if (columns(line) + 1 + columns(word) > kWidth - 2) {
      text += line + " \\\n";
      line = "     ";
    }
    line += " " + word;
  }
  return text + line + "\n";
}

std::string examples_text(const CommandRow& command) {
  std::string text;
  const auto examples = examples_of(command);
  for (size_t i = 0; i < std::min(kMostExamples, examples.size()); ++i)
    text += example_text(examples[i]);
  return text.empty() ? "" : "\nExamples:\n" + text;
}

size_t lines_of(const std::string& text) {
  return static_cast<size_t>(std::ranges::count(text, '\n'));
}

/// A description on one line, for where two do not fit the page.
std::string on_one_line(const std::string& description) {
  constexpr size_t kRoom = kWidth - kNameColumns - 2;
  if (columns(description) <= kRoom) return description;
  std::string line;
  for (const std::string& word : words_of(description)) {
    if (columns(line) + columns(word) + 4 > kRoom) break;
    line += (line.empty() ? "" : " ") + word;
  }
  return line + " ...";
}

std::string groups_text(const CommandRow& command, bool one_line) {
  std::string text;
  for (const HelpGroup& group : common_options(command)) {
    text += fmt::format("{}:\n", group.heading);
    for (const std::string& name : group.options) {
      const OptionRow* option = command.find(name);
      if (!option) continue;
      std::string description = first_clause(option->description);
      if (!option->initial.empty() && option->initial != "0" && option->initial.size() < 12 &&
          description.find("default") == std::string::npos)
        description += fmt::format(" [{}]", option->initial);
      text += entry(names_text(*option, Names::first),
                    one_line ? on_one_line(description) : description);
    }
  }
  return text.empty() ? "" : "\n" + text;
}

}  // namespace

std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string result, line(indent, ' ');
  bool empty = true;
  for (const std::string& word : words_of(text)) {
    if (!empty && columns(line) + 1 + columns(word) > width) {
      result += line + "\n";
      line.assign(indent, ' ');
      empty = true;
    }
    line += (empty ? "" : " ") + word;
    empty = false;
  }
  return result + line + "\n";
}

std::vector<std::string> examples_of(const CommandRow& command) {
  std::vector<std::string> examples;
  std::string_view footer = command.footer;
  while (!footer.empty()) {
    const size_t end = std::min(footer.find('\n'), footer.size());
    std::string_view line = footer.substr(0, end);
    footer.remove_prefix(std::min(end + 1, footer.size()));
    for (const std::string_view start : {" ", "Examples:", "Example:", " "})
      while (line.starts_with(start)) line.remove_prefix(start.size());
    // What explains an example stands behind it, after more than one space.
    if (line.starts_with("mixtral ")) examples.emplace_back(line.substr(0, line.find("  ")));
  }
  return examples;
}

std::string short_help(const CommandRow& command) {
  const std::string head = wrapped(command.description, 0) + usage_line(command);
  const bool more = std::ranges::any_of(command.options, [&](const OptionRow& option) {
    return option.name() != "--help" && option.name() != "--help-all" &&
           option.name() != "--version";
  });
  const std::string rest =
      commands_text(command) + examples_text(command) +
      (more ? fmt::format("\n`{} --help-all` explains all options.\n", command.path)
       : !command.commands.empty()
           ? fmt::format("\n`{} COMMAND --help` explains each command.\n", command.path)
           : "");
  std::string options = groups_text(command, false);
  if (lines_of(head) + lines_of(options) + lines_of(rest) > kMostLines)
    options = groups_text(command, true);
  return head + options + rest;
}

std::string full_help(const CommandRow& command) {
  std::string text = wrapped(command.description, 0) + usage_line(command);
  std::vector<std::string> order;
  for (const OptionRow& option : command.options)
    if (std::ranges::count(order, option.group) == 0) order.push_back(option.group);
  for (const std::string& group : order) {
    text += fmt::format("\n{}:\n", group);
    for (const OptionRow& option : command.options) {
      if (option.group != group) continue;
      std::string description = option.description;
      const std::string choices = fmt::format("{}", fmt::join(option.choices, ", "));
      if (choices.size() > kShortChoices) description += fmt::format(" {{{}}}", choices);
      if (!option.initial.empty()) description += fmt::format(" [{}]", option.initial);
      if (option.required) description += " (required)";
      text += entry(names_text(option, Names::all), description);
    }
  }
  text += commands_text(command);
  if (!command.footer.empty()) text += "\n" + command.footer;
  if (!text.ends_with('\n')) text += "\n";
  return text;
}

}  // namespace mixtral
