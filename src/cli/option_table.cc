#include "cli/option_table.h"

#include <string_view>

namespace mixtral {
namespace {

/// The words between the braces of "TEXT:{on,off}".
std::vector<std::string> choices_of(std::string_view type) {
  std::vector<std::string> choices;
  const size_t open = type.find('{'), close = type.find('}');
  if (open == std::string_view::npos || close == std::string_view::npos) return choices;
  std::string_view list = type.substr(open + 1, close - open - 1);
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    choices.emplace_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return choices;
}

std::string placeholder(std::string_view type) {
  if (type.find("SIZE") != std::string_view::npos) return "SIZE";
  if (type.starts_with("INT") || type.starts_with("UINT")) return "N";
  return type.starts_with("FLOAT") ? "X" : "TEXT";
}

OptionRow row_of(const cli::Option& option) {
  OptionRow row;
  for (const std::string& name : option.get_snames())
    if (row.short_name.empty()) row.short_name = "-" + name;
  for (const std::string& name : option.get_lnames()) row.long_names.push_back("--" + name);
  row.positional = option.get_positional() ? option.get_name(true) : "";
  const bool flag = option.get_items_expected_max() == 0;
  if (!flag) {
    row.value = placeholder(option.get_type_name());
    row.choices = choices_of(option.get_type_name());
    row.initial = option.get_default_str();
  }
  row.description = option.get_description();
  row.group = option.get_group();
  row.required = option.get_required();
  row.repeated = option.get_expected_max() > 1;
  return row;
}

}  // namespace

CommandRow describe(const cli::App& command) {
  CommandRow row{.path = command.get_name(),
                 .description = command.get_description(),
                 .footer = command.get_footer()};
  for (const cli::App* parent = command.get_parent(); parent; parent = parent->get_parent())
    row.path = parent->get_name() + " " + row.path;
  for (const cli::Option* option : command.get_options())
    if (!option->get_group().empty()) row.options.push_back(row_of(*option));
  for (const cli::App* inner : command.get_subcommands([](const cli::App*) { return true; }))
    row.commands.push_back(describe(*inner));
  return row;
}

}  // namespace mixtral
