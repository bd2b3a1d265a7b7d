#include "cli/usage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "base/nearest.h"
#include "base/numbers.h"
#include "base/printable.h"

namespace mixtral {
namespace {

/// The command that was being read: "mixtral data check".
std::string path_of(const cli::App& command) {
  const cli::App* parent = command.get_parent();
  return parent ? path_of(*parent) + " " + command.get_name() : command.get_name();
}

/// " (did you mean --out?)" for a word and the names that are known, both without their dashes.
std::string suggestion(const std::string& word, const std::vector<std::string>& known,
                       std::string_view dashes) {
  const std::string close = nearest(word, known);
  return close.empty() ? "" : fmt::format(" (did you mean {}{}?)", dashes, close);
}

/// What stands before and behind `middle` in a text that begins with `start`.
std::optional<std::pair<std::string, std::string>> split(std::string_view text,
                                                         std::string_view start,
                                                         std::string_view middle) {
  if (!text.starts_with(start)) return std::nullopt;
  text.remove_prefix(start.size());
  const size_t at = text.find(middle);
  if (at == std::string_view::npos) return std::nullopt;
  return std::pair(std::string(text.substr(0, at)), std::string(text.substr(at + middle.size())));
}

/// "1 to 3" of "1.000000 to 3.000000".
std::string without_zero_fractions(std::string_view text) {
  constexpr std::string_view kZeros = ".000000";
  const auto is_digit = [&](size_t i) {
    return i < text.size() && text[i] >= '0' && text[i] <= '9';
  };
  std::string result;
  for (size_t i = 0; i < text.size();) {
    const bool zeros = i > 0 && is_digit(i - 1) && text.substr(i).starts_with(kZeros) &&
                       !is_digit(i + kZeros.size());
    if (zeros)
      i += kZeros.size();
    else
      result += text[i++];
  }
  return result;
}

/// Checks of a flag's value, in the form of CLI11's: "" when it is one, else what is wrong. A whole
/// number is rewritten so that CLI11, to which 010 is 8, reads what was written.
std::string whole(std::string& text, bool sign) {
  if (const auto value = parse_integer(text); value && (sign || *value >= 0)) {
    text = std::to_string(*value);
    return "";
  }
  if (const auto value = parse_unsigned(text); value && !sign) {
    text = std::to_string(*value);
    return "";
  }
  const bool digits = !text.empty() &&
                      text.find_first_not_of("0123456789", text[0] == '-') == std::string::npos &&
                      text != "-";
  if (!digits) return fmt::format("expected a whole number, found \"{}\"", printable(text));
  if (!sign && text[0] == '-')
    return fmt::format("expected a whole number from 0 on, found {}", printable(text));
  return fmt::format("expected a whole number of at most 64 bits, found {}", printable(text));
}

std::string number(std::string& text) {
  if (parse_number(text)) return "";
  return fmt::format("expected a number, found \"{}\"", printable(text));
}

std::string finite(std::string& text) {
  const auto value = parse_number(text);
  if (value && std::isfinite(*value)) return "";
  return fmt::format("expected a finite number, found {}", printable(text));
}

}  // namespace

std::string flag_error(const cli::Error& error) {
  const std::string text = error.what();
  // "Could not convert: --lr = fast"
  if (const auto parts = split(text, "Could not convert: ", " = "))
    return fmt::format("{} is '{}', expected a number", parts->first, printable(parts->second));
  // "--top-k: Value 5 not in range 1 to 3.000000"
  if (const auto flag = split(text, "", ": Value "))
    if (const auto value = split(flag->second, "", " not in range "))
      return fmt::format("{} is {}, expected {}", flag->first, printable(value->first),
                         without_zero_fractions(value->second));
  // "--pack: all not in {on,fill,off}"
  if (const auto flag = split(text, "", ": "))
    if (const auto value = split(flag->second, "", " not in {"); value && text.ends_with('}'))
      return fmt::format("{} is '{}', expected one of {}", flag->first, printable(value->first),
                         value->second.substr(0, value->second.size() - 1));
  return without_zero_fractions(text);
}

void read_numbers_as_written(cli::App& app) {
  for (cli::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    if (type.find("SIZE") != std::string::npos) continue;  // "20MB"
    if (type.starts_with("INT") || type.starts_with("UINT")) {
      const bool sign = type.starts_with("INT");
      option->transform(
          cli::Validator([sign](std::string& text) { return whole(text, sign); }, ""));
    } else if (type.starts_with("FLOAT")) {
      option->transform(cli::Validator(number, ""));
      option->check(cli::Validator(finite, ""));  // last, behind the flag's own range
    }
  }
  for (cli::App* command : app.get_subcommands([](const cli::App*) { return true; }))
    read_numbers_as_written(*command);
}

std::string usage_error(const cli::App& app, const cli::ParseError& error) {
  const cli::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().back();
  const std::string help = fmt::format("`{} --help` explains", path_of(*command));
  const std::vector<std::string> rest = command->remaining();
  const std::vector<const cli::App*> inner =
      command->get_subcommands([](const cli::App*) { return true; });
  if (!inner.empty()) {  // a command that consists of others, and none of them was named
    std::vector<std::string> names;
    names.reserve(inner.size());
    for (const cli::App* each : inner) names.push_back(each->get_name());
    const auto word = std::ranges::find_if(rest, [](const auto& w) { return !w.starts_with("-"); });
    if (word != rest.end())
      return fmt::format("{} has no command '{}'{}; {}", path_of(*command), printable(*word),
                         suggestion(*word, names, ""), help);
    return fmt::format("{} needs a command: {}; {}", path_of(*command), fmt::join(names, ", "),
                       help);
  }
  const auto unknown = std::ranges::find_if(rest, [](const auto& w) { return w.starts_with("-"); });
  if (unknown != rest.end()) {  // also where something else is missing: a misspelt --model
    std::vector<std::string> names;
    for (const cli::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) names.push_back(name);
    const std::string flag = unknown->substr(0, unknown->find('='));
    const std::string word = flag.substr(std::min(flag.find_first_not_of('-'), flag.size()));
    return fmt::format("{} takes no '{}'{}; {}", path_of(*command), printable(flag),
                       suggestion(word, names, "--"), help);
  }
  return fmt::format("{}; {}", flag_error(error), help);
}

}  // namespace mixtral
