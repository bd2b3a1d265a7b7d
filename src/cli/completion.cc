#include "cli/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace mixtral {
namespace {

void for_each_command(const CommandRow& command,
                      const std::function<void(const CommandRow&)>& visit) {
  visit(command);
  for (const CommandRow& inner : command.commands) for_each_command(inner, visit);
}

std::vector<std::string> names_of(const OptionRow& option) {
  std::vector<std::string> names = option.long_names;
  if (!option.short_name.empty()) names.push_back(option.short_name);
  return names;
}

/// In single quotes, as shells read it.
std::string shell_quoted(std::string_view text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

std::string inner_names(const CommandRow& command) {
  std::vector<std::string> names;
  names.reserve(command.commands.size());
  for (const CommandRow& inner : command.commands) names.push_back(inner.name());
  return fmt::format("{}", fmt::join(names, " "));
}

/// "'mixtral chat --dtype'|'mixtral chat -d'"
std::string patterns(const std::string& path, const std::vector<std::string>& names) {
  std::vector<std::string> each;
  each.reserve(names.size());
  for (const std::string& name : names)
    each.push_back(shell_quoted(fmt::format("{} {}", path, name)));
  return fmt::format("{}", fmt::join(each, "|"));
}

std::string bash_script(const CommandRow& root) {
  std::string commands, options, values;
  for_each_command(root, [&](const CommandRow& command) {
    std::vector<std::string> names;
    for (const OptionRow& option : command.options) {
      const auto these = names_of(option);
      names.insert(names.end(), these.begin(), these.end());
      if (!option.choices.empty() && !these.empty())
        values += fmt::format("    {}) words={} ;;\n", patterns(command.path, these),
                              shell_quoted(fmt::format("{}", fmt::join(option.choices, " "))));
    }
    if (!command.commands.empty())
      commands += fmt::format("    {}) inner={} ;;\n", shell_quoted(command.path),
                              shell_quoted(inner_names(command)));
    options += fmt::format("    {}) options={} ;;\n", shell_quoted(command.path),
                           shell_quoted(fmt::format("{}", fmt::join(names, " "))));
  });
  return fmt::format(
      "# bash completion of mixtral: eval \"$(mixtral completion bash)\"\n"
      "_mixtral_inner() {{\n  inner=\n  case $1 in\n{}  esac\n}}\n"
      "_mixtral() {{\n"
      "  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}\n"
      "  local path=mixtral inner options= words= i\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    _mixtral_inner \"$path\"\n"
      "    [[ \" $inner \" == *\" ${{COMP_WORDS[i]}} \"* ]] && path+=\" ${{COMP_WORDS[i]}}\"\n"
      "  done\n"
      "  case \"$path $before\" in\n{}  esac\n"
      "  if [[ -n $words ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "    return\n"
      "  fi\n"
      "  _mixtral_inner \"$path\"\n"
      "  case $path in\n{}  esac\n"
      "  if [[ $current == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
      "  elif [[ -n $inner ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$inner\" -- \"$current\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$current\"))\n"
      "  fi\n"
      "}}\n"
      "complete -o filenames -F _mixtral mixtral\n",
      commands, values, options);
}

/// A description inside zsh's [brackets].
std::string zsh_description(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_function(const CommandRow& command) {
  std::string name = "_" + command.path;
  std::ranges::replace(name, ' ', '_');
  std::string text = fmt::format("{}() {{\n", name);
  text += command.commands.empty() ? "  _arguments -S" : "  local state line\n  _arguments -C";
  for (const OptionRow& option : command.options) {
    const std::string value = option.value.empty() ? ""
                              : !option.choices.empty()
                                  ? fmt::format(":value:({})", fmt::join(option.choices, " "))
                              : option.value == "TEXT" ? ":text:_files"
                                                       : fmt::format(":{}:", option.value);
    for (const std::string& each : names_of(option))
      text += fmt::format(" \\\n    {}",
                          shell_quoted(fmt::format("{}{}[{}]{}", option.repeated ? "*" : "", each,
                                                   zsh_description(option.description), value)));
  }
  if (command.commands.empty()) return text + " \\\n    '*:file:_files'\n}\n";
  text +=
      " \\\n    '1:command:->command' '*::argument:->argument'\n  case $state in\n"
      "    command)\n      local -a commands=(\n";
  for (const CommandRow& inner : command.commands)
    text += fmt::format("        {}\n",
                        shell_quoted(inner.name() + ":" + zsh_description(inner.description)));
  text += "      )\n      _describe command commands ;;\n    argument)\n      case $line[1] in\n";
  for (const CommandRow& inner : command.commands)
    text += fmt::format("        {}) {}_{} ;;\n", inner.name(), name, inner.name());
  return text + "      esac ;;\n  esac\n}\n";
}

std::string zsh_script(const CommandRow& root) {
  std::string text =
      "#compdef mixtral\n# zsh completion of mixtral: source <(mixtral completion zsh)\n";
  for_each_command(root, [&](const CommandRow& command) { text += zsh_function(command); });
  return text + "compdef _mixtral mixtral\n";
}

std::string fish_script(const CommandRow& root) {
  std::string text = "# fish completion of mixtral: mixtral completion fish | source\n";
  for_each_command(root, [&](const CommandRow& command) {
    // Below "mixtral data check": data and check were typed. Before a command: none of its names.
    std::vector<std::string> conditions;
    std::string_view rest = command.path;
    while (rest.find(' ') != std::string_view::npos) {
      rest.remove_prefix(rest.find(' ') + 1);
      conditions.push_back(
          fmt::format("__fish_seen_subcommand_from {}", rest.substr(0, rest.find(' '))));
    }
    std::vector<std::string> before = conditions;
    if (!command.commands.empty())
      before.push_back(fmt::format("not __fish_seen_subcommand_from {}", inner_names(command)));
    if (conditions.empty()) conditions.push_back("__fish_use_subcommand");
    const std::string when = shell_quoted(fmt::format("{}", fmt::join(conditions, "; and ")));
    for (const CommandRow& inner : command.commands)
      text += fmt::format("complete -c mixtral -f -n {} -a {} -d {}\n",
                          shell_quoted(fmt::format("{}", fmt::join(before, "; and "))),
                          inner.name(), shell_quoted(inner.description));
    for (const OptionRow& option : command.options) {
      std::string line = "complete -c mixtral -n " + when;
      for (const std::string& name : option.long_names) line += " -l " + name.substr(2);
      if (!option.short_name.empty()) line += " -s " + option.short_name.substr(1);
      if (!option.value.empty()) line += " -r";
      if (!option.choices.empty())
        line += " -f -a " + shell_quoted(fmt::format("{}", fmt::join(option.choices, " ")));
      text += line + " -d " + shell_quoted(option.description) + "\n";
    }
  });
  return text;
}

}  // namespace

std::string completion_script(const CommandRow& root, std::string_view shell) {
  if (shell == "bash") return bash_script(root);
  if (shell == "zsh") return zsh_script(root);
  if (shell == "fish") return fish_script(root);
  throw UsageError(fmt::format("completion: expected bash, zsh or fish, found '{}'", shell));
}

}  // namespace mixtral
