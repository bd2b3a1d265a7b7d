#include "cli/man_page.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string_view>

#include "cli/help.h"

namespace mixtral {
namespace {

/// Text as roff prints it: no dash is a hyphen, no line a request.
std::string roff(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\')
      result += "\\e";
    else if (c == '-')
      result += "\\-";
    else if ((c == '.' || c == '\'') && (result.empty() || result.back() == '\n'))
      result += std::string("\\&") + c;
    else
      result += c;
  }
  return result;
}

void append_option(std::string& page, const OptionRow& option) {
  std::vector<std::string> names;
  if (!option.short_name.empty()) names.push_back(option.short_name);
  names.insert(names.end(), option.long_names.begin(), option.long_names.end());
  if (names.empty()) names.push_back(option.positional);
  page += ".TP\n";
  for (size_t i = 0; i < names.size(); ++i)
    page += fmt::format("{}\\fB{}\\fR", i == 0 ? "" : ", ", roff(names[i]));
  if (!option.value.empty()) page += fmt::format(" \\fI{}\\fR", option.value);
  page += "\n" + roff(option.description);
  if (!option.choices.empty())
    page += fmt::format("\nOne of {}.", roff(fmt::format("{}", fmt::join(option.choices, ", "))));
  if (!option.initial.empty()) page += fmt::format("\nDefault: {}.", roff(option.initial));
  page += "\n";
}

void append_command(std::string& page, const CommandRow& command) {
  page += fmt::format(".SS {}\n{}\n", roff(command.path), roff(command.description));
  for (const OptionRow& option : command.options)
    if (option.name() != "--help" && option.name() != "--help-all") append_option(page, option);
  const auto examples = examples_of(command);
  if (!examples.empty()) page += ".PP\nExamples:\n.PP\n.nf\n.RS 4\n";
  for (const std::string& example : examples) page += roff(example) + "\n";
  if (!examples.empty()) page += ".RE\n.fi\n";
  for (const CommandRow& inner : command.commands) append_command(page, inner);
}

}  // namespace

std::string man_page(const CommandRow& root, const std::string& version) {
  std::string page = fmt::format(
      ".TH MIXTRAL 1 \"\" \"mixtral {}\" \"User Commands\"\n.SH NAME\nmixtral \\- train, evaluate "
      "and "
      "run Mixtral models\n.SH SYNOPSIS\n.B mixtral\n.I COMMAND\n[options]\n.SH DESCRIPTION\n{}\n"
      ".SH COMMANDS\n",
      version, roff(root.description));
  for (const CommandRow& command : root.commands) append_command(page, command);
  return page +
         ".SH EXIT STATUS\n.TP\n.B 0\nDone.\n.TP\n.B 1\nFailed: a file, the memory or the disk is "
         "not "
         "as it should be.\n.TP\n.B 2\nThe command line or a configuration file makes no sense.\n"
         ".TP\n.B 128+n\nStopped by signal n, after saving.\n"
         ".SH ENVIRONMENT\n.TP\n.B NO_COLOR\nWhere it is set, nothing is printed in colour.\n";
}

}  // namespace mixtral
