#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "cli/command_line.h"

namespace mixtral {

namespace detail {
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
}  // namespace detail

/// Which value counts when a run is resumed with a flag that differs from the run's own.
struct OnResume {
  // unnoticed: the flag, and it makes no difference to results;
  // forgotten: the same, and a run does not record it at all;
  // command_line: only the command line may set it, and a file that does is refused
  enum class Wins { flag, run, unnoticed, forgotten, command_line };
  Wins wins = Wins::flag;
  std::string reason;  // why, as the second half of a sentence

  static OnResume flag() { return {Wins::flag, ""}; }
  static OnResume run(std::string reason) { return {Wins::run, std::move(reason)}; }
  static OnResume forgotten() { return {Wins::forgotten, ""}; }
  static OnResume command_line(std::string reason) {
    return {Wins::command_line, std::move(reason)};
  }
  static OnResume unnoticed() { return {Wins::unnoticed, ""}; }
};

/// The flags of a command that a YAML file can set as well. A key is a flag's long name without the
/// dashes ("batch-size"; "batch_size" is accepted).
class RunConfig {
 public:
  explicit RunConfig(cli::App& app) : app_(app) {}

  /// Adds an option in a group of the help text.
  template <class T>
  cli::Option* add(const std::string& flags, T& value, const std::string& help,
                   const OnResume& rule = OnResume::flag()) {
    cli::Option* option;
    if constexpr (std::is_same_v<T, bool>)
      option = app_.add_flag(flags, value, help);
    else
      option = app_.add_option(flags, value, help);
    option->group(group_)->take_last();
    if constexpr (!detail::is_optional<T> && !std::is_same_v<T, bool> &&
                  !std::is_same_v<T, std::string>)
      option->capture_default_str();
    if constexpr (std::is_same_v<T, std::string>)
      if (!value.empty()) option->capture_default_str();
    adopt(option, value, rule);
    return option;
  }
  /// Takes in an option that was added elsewhere.
  template <class T>
  void adopt(cli::Option* option, T& value, const OnResume& rule) {
    entries_.push_back({.key = option->get_lnames().front(),
                        .option = option,
                        .text = [&value] { return as_text(value); },
                        .reset = [&value, initial = value] { value = initial; },
                        .rule = rule,
                        .optional = detail::is_optional<T>});
  }
  /// Options added from here on are in this group.
  void group(std::string name) { group_ = std::move(name); }

  /// Sets every option that the command line did not give from a YAML file: one map of keys to
  /// plain values; the key `run_info` is skipped. Throws UsageError naming file, line and key: an
  /// unknown key (and the nearest known one), a value that the flag would refuse, a nested value, a
  /// file that is too large or no YAML.
  void load(const std::filesystem::path& file);

  /// Sets every option from a run's own configuration, except those that the command line gave and
  /// that may change on resuming. Returns a sentence for each value that differs.
  std::vector<std::string> load_for_resume(const std::filesystem::path& file);

  /// How values are written that no flag or file gave, and that follow from other ones: a run
  /// records them as values; in a file that is to be edited they are comments, so that they follow
  /// from what is edited.
  enum class Derived { as_values, as_comments };
  /// Every option's value as YAML; those without a value are left out.
  std::string dump(Derived derived = Derived::as_values) const;
  /// Whether the command line, or a file, set an option.
  bool is_set(const std::string& key) const;

 private:
  struct Entry {
    std::string key;
    cli::Option* option;
    std::function<std::string()> text;  // "" when there is no value
    std::function<void()> reset;        // to the value that no flag gives
    OnResume rule;
    bool optional = false;  // the command line may leave it out; its value is then derived
  };
  struct Value {
    std::string text;
    int line = 0;
  };
  static std::string number_text(double value);
  template <class T>
  static std::string as_text(const T& value) {
    if constexpr (detail::is_optional<T>)
      return value ? as_text(*value) : "";
    else if constexpr (std::is_same_v<T, bool>)
      return value ? "true" : "false";
    else if constexpr (std::is_same_v<T, std::string>)
      return value;
    else if constexpr (std::is_floating_point_v<T>)
      return number_text(value);
    else
      return std::to_string(value);
  }

  std::map<std::string, Value> read(const std::filesystem::path& file) const;
  void set(const Entry& entry, const std::filesystem::path& file, const Value& value);

  cli::App& app_;
  std::string group_;
  std::vector<Entry> entries_;
};

/// Sizes beyond which no batch is planned, whatever the memory.
inline constexpr int64_t kMostContext = int64_t{1} << 24, kMostRows = int64_t{1} << 20;

/// Checks of values that leave the help text short.
cli::Validator at_least(int64_t least);
cli::Validator count_between(int64_t least, int64_t most);
cli::Validator between(double least, double most);
cli::Validator on_off();

/// The text of a YAML scalar: quoted where YAML would read it as something else.
std::string yaml_scalar(const std::string& text);

/// The value at run_info/`key` of a run's config.yaml, a map of texts; empty when it is absent.
std::map<std::string, std::string> read_run_info(const std::filesystem::path& file,
                                                 const std::string& key);

}  // namespace mixtral
