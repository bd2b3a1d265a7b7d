#include "cli/run_config.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "cli/usage.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMostBytes = uint64_t{1} << 20;
constexpr int kMostDepth = 16;
constexpr std::string_view kRunInfo = "run_info";

std::string with_dashes(std::string key) {
  std::ranges::replace(key, '_', '-');
  return key;
}

/// Refuses text that nests so deeply that parsing it would exhaust the stack.
void limit_depth(const fs::path& file, std::string_view text) {
  int open = 0, line = 1;
  size_t indentation = 0;
  bool at_start = true;
  for (const char c : text) {
    if (c == '\n') {
      ++line;
      indentation = 0;
      at_start = true;
      continue;
    }
    // A block nests by spaces, or by dashes on one line.
    if (at_start && (c == ' ' || c == '-' || c == '?'))
      ++indentation;
    else
      at_start = false;
    if (c == '[' || c == '{') ++open;
    if (c == ']' || c == '}') --open;
    if (open > kMostDepth || indentation > 8 * kMostDepth)
      throw UsageError(
          fmt::format("{}:{}: nested more than {} levels deep", file.string(), line, kMostDepth));
  }
}

YAML::Node parse(const fs::path& file) {
  if (!fs::exists(file)) throw UsageError(fmt::format("{}: there is no such file", file.string()));
  const std::string text = read_file(file, kMostBytes);
  limit_depth(file, text);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1)
      throw UsageError(fmt::format(
          "{}: expected one YAML document, found {}, divided by lines of ---; keep one of them",
          file.string(), documents.size()));
    const YAML::Node root = documents.empty() ? YAML::Node() : documents.front();
    if (!root.IsMap() && !root.IsNull())
      throw UsageError(
          fmt::format("{}: expected keys and values, such as \"batch-size: 16\"", file.string()));
    return root;
  } catch (const YAML::Exception& error) {
    throw UsageError(
        fmt::format("{}:{}: not valid YAML: {}", file.string(), error.mark.line + 1, error.msg));
  }
}

std::string shown(const std::string& text) { return text.empty() ? "(none)" : printable(text); }

}  // namespace

std::string RunConfig::number_text(double value) { return fmt::format("{}", value); }

cli::Validator at_least(int64_t least) {
  return {[least](std::string& text) {
            const auto value = parse_integer(text);
            if (!value)
              return fmt::format("expected a whole number, found \"{}\"", printable(text));
            return *value < least ? fmt::format("expected at least {}, found {}", least, *value)
                                  : "";
          },
          ""};
}

cli::Validator count_between(int64_t least, int64_t most) {
  return {[least, most](std::string& text) {
            const auto value = parse_integer(text);
            if (!value)
              return fmt::format("expected a whole number, found \"{}\"", printable(text));
            return *value >= least && *value <= most
                       ? std::string()
                       : fmt::format("expected {} to {}, found {}", least, most, *value);
          },
          ""};
}

cli::Validator between(double least, double most) {
  return {[least, most](std::string& text) {
            const auto value = parse_number(text);
            if (!value) return fmt::format("expected a number, found \"{}\"", printable(text));
            return *value >= least && *value <= most
                       ? std::string()
                       : fmt::format("expected {} to {}, found {}", least, most, *value);
          },
          ""};
}

cli::Validator on_off() { return cli::IsMember({"on", "off"}); }

std::string yaml_scalar(const std::string& text) {
  const bool plain = !text.empty() && text.front() != '-' && text.front() != '~' &&
                     text != "null" && std::ranges::all_of(text, [](char c) {
                       return std::isalnum(static_cast<unsigned char>(c)) ||
                              std::string_view("._/-+,").find(c) != std::string_view::npos;
                     });
  const bool negative_number =
      text.size() > 1 && text.front() == '-' && std::isdigit(static_cast<unsigned char>(text[1]));
  if (plain || negative_number) return text;
  YAML::Emitter emitter;
  emitter << YAML::DoubleQuoted << text;
  return emitter.c_str();
}

std::map<std::string, RunConfig::Value> RunConfig::read(const fs::path& file) const {
  std::map<std::string, Value> values;
  for (const auto& item : parse(file)) {
    const int line = item.first.Mark().line + 1;
    if (!item.first.IsScalar())
      throw UsageError(fmt::format("{}:{}: a key must be a word", file.string(), line));
    const std::string written = item.first.Scalar(), key = with_dashes(written);
    if (written == kRunInfo) continue;
    const auto entry = std::ranges::find(entries_, key, &Entry::key);
    if (entry == entries_.end()) {
      std::vector<std::string> known;
      known.reserve(entries_.size());
      for (const Entry& e : entries_) known.push_back(e.key);
      const std::string close = nearest(key, known);
      throw UsageError(fmt::format("{}:{}: unknown key \"{}\"{}", file.string(), line,
                                   printable(written),
                                   close.empty() ? "; see --help for the flags, which are the keys"
                                                 : fmt::format("; did you mean {}?", close)));
    }
    if (!item.second.IsScalar() && !item.second.IsNull())
      throw UsageError(fmt::format("{}:{}: {}: expected one value, found a list or a map",
                                   file.string(), line, key));
    if (values.contains(key))
      throw UsageError(fmt::format("{}:{}: {} stands there twice", file.string(), line, key));
    values[key] = {item.second.IsNull() ? "" : item.second.Scalar(), line};
  }
  return values;
}

void RunConfig::set(const Entry& entry, const fs::path& file, const Value& value) {
  if (value.text.empty() && entry.text().empty()) return;
  try {
    entry.option->clear();
    entry.option->add_result(value.text);
    entry.option->run_callback();
  } catch (const cli::Error& error) {
    throw UsageError(
        fmt::format("{}:{}: {}: {}", file.string(), value.line, entry.key, flag_error(error)));
  }
}

void RunConfig::load(const fs::path& file) {
  const auto values = read(file);
  std::set<const cli::Option*> given;
  for (const Entry& entry : entries_)
    if (entry.option->count() > 0) given.insert(entry.option);
  for (const Entry& entry : entries_) {
    const auto value = values.find(entry.key);
    if (value == values.end() || given.contains(entry.option)) continue;
    if (entry.rule.wins == OnResume::Wins::command_line) {
      if (value->second.text == "false") continue;
      throw UsageError(
          fmt::format("{}:{}: {} is taken from the command line only, {}; leave it out "
                      "here and give --{}",
                      file.string(), value->second.line, entry.key, entry.rule.reason, entry.key));
    }
    // Of two that say the same thing, the one on the command line counts.
    const auto others = entry.option->get_excludes();
    if (std::ranges::any_of(others, [&](const cli::Option* o) { return given.contains(o); }))
      continue;
    for (const cli::Option* other : others)
      if (other->count() > 0)
        throw UsageError(fmt::format("{}:{}: {} and {} exclude each other; leave one out",
                                     file.string(), value->second.line, entry.key,
                                     other->get_lnames().front()));
    set(entry, file, value->second);
  }
}

std::vector<std::string> RunConfig::load_for_resume(const fs::path& file) {
  const auto values = read(file);
  std::vector<std::string> notes;
  for (const Entry& entry : entries_) {
    const auto found = values.find(entry.key);
    const Value recorded = found != values.end() ? found->second : Value{};
    if (entry.rule.wins == OnResume::Wins::command_line) {
      if (entry.option->count() == 0 && !recorded.text.empty() && recorded.text != "false")
        notes.push_back(
            fmt::format("the run's {} is left out: it is taken from the command line "
                        "only, {}; give --{} again",
                        entry.key, entry.rule.reason, entry.key));
      continue;
    }
    if (entry.option->count() == 0) {
      if (found != values.end()) set(entry, file, recorded);
      continue;
    }
    const std::string given = entry.text();
    // Compared as the flag reads it: 1e-3 is 0.001.
    bool differs = given != recorded.text;
    switch (entry.rule.wins) {
      case OnResume::Wins::unnoticed:
      case OnResume::Wins::forgotten:
      case OnResume::Wins::command_line:
        break;
      case OnResume::Wins::flag:
        if (differs)
          notes.push_back(fmt::format(
              "--{} {} takes the place of the run's {} from here on: the result is not that of the "
              "run without this change",
              entry.key, shown(given), shown(recorded.text)));
        break;
      case OnResume::Wins::run:
        if (differs)
          notes.push_back(fmt::format("--{} {} is ignored, and the run's {} kept: {}", entry.key,
                                      shown(given), shown(recorded.text), entry.rule.reason));
        entry.option->clear();
        entry.reset();
        if (!recorded.text.empty()) set(entry, file, recorded);
        break;
    }
  }
  return notes;
}

std::string RunConfig::dump(Derived derived) const {
  std::string text;
  std::string group;
  for (const Entry& entry : entries_) {
    const std::string value = entry.text();
    if (value.empty() || entry.rule.wins == OnResume::Wins::forgotten ||
        entry.rule.wins == OnResume::Wins::command_line)
      continue;
    if (entry.option->get_group() != group) {
      group = entry.option->get_group();
      text += fmt::format("{}# {}\n", text.empty() ? "" : "\n", group);
    }
    const bool comment =
        derived == Derived::as_comments && entry.optional && entry.option->count() == 0;
    text += fmt::format("{}{}: {}{}\n", comment ? "# " : "", entry.key, yaml_scalar(value),
                        comment ? "  # derived" : "");
  }
  return text;
}

bool RunConfig::is_set(const std::string& key) const {
  const auto entry = std::ranges::find(entries_, key, &Entry::key);
  CHECK(entry != entries_.end(), key);
  return entry->option->count() > 0;
}

std::map<std::string, std::string> read_run_info(const fs::path& file, const std::string& key) {
  std::map<std::string, std::string> result;
  const YAML::Node root = parse(file);
  const YAML::Node info = root[std::string(kRunInfo)];
  if (!info.IsDefined() || !info.IsMap()) return result;
  const YAML::Node map = info[key];
  if (!map.IsDefined() || !map.IsMap()) return result;
  for (const auto& item : map)
    if (item.first.IsScalar() && item.second.IsScalar())
      result[item.first.Scalar()] = item.second.Scalar();
  return result;
}

}  // namespace mixtral
