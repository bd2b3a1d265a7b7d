#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// CLI11 is included by command_line.cc alone: each file that includes it takes half a minute to
// compile.
namespace CLI {
class App;
class Option;
class Validator;
}  // namespace CLI

/// The commands' view of CLI11, under CLI11's names (https://cliutils.github.io/CLI11). A method
/// without a comment does what CLI11's does.
namespace mixtral::cli {

struct Registry;  // the App and Option of each of CLI11's

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The command line cannot be read.
class ParseError : public Error {
  using Error::Error;
};
/// Not an error: what() is to be printed, and nothing else done.
class Success : public ParseError {
  using ParseError::ParseError;
};
class CallForHelp : public Success {
  using Success::Success;
};
class CallForAllHelp : public Success {
  using Success::Success;
};

/// A check of a value's text: "" when it is right, else what is wrong. As a transformation it may
/// also rewrite the text. The description is shown where the type is: "INT in [0 - 9]".
class Validator {
 public:
  using Check = std::function<std::string(std::string& text)>;
  Validator(const Check& check, const std::string& description);

 private:
  friend class Option;
  explicit Validator(const ::CLI::Validator& validator);
  friend class IsMember;
  friend class Range;
  friend class AsSizeValue;
  std::shared_ptr<const ::CLI::Validator> validator_;
};

/// One of these texts.
class IsMember : public Validator {
 public:
  explicit IsMember(const std::vector<std::string>& members);
};

/// A whole number, or a number, from `least` to `most`.
class Range : public Validator {
 public:
  Range(int64_t least, int64_t most);
  Range(int least, int most) : Range(int64_t{least}, int64_t{most}) {}
  Range(double least, double most);
};

/// Transforms "20MB" to bytes.
class AsSizeValue : public Validator {
 public:
  explicit AsSizeValue(bool kb_is_1000);
};

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);
/// The types that an option's value may have: those for which command_line.cc compiles add_option.
template <class T>
concept OptionValue = OneOf<T, std::string, int32_t, int64_t, uint32_t, uint64_t, float, double,
                            std::optional<std::string>, std::optional<int32_t>,
                            std::optional<int64_t>, std::optional<uint64_t>, std::optional<float>,
                            std::optional<double>, std::vector<std::string>, std::vector<int32_t>,
                            std::vector<int64_t>, std::vector<double>>;

/// An option, flag or positional argument of a command. Lives as long as the command.
class Option {
 public:
  Option(::CLI::Option* option, Registry* registry) : option_(option), registry_(registry) {}
  Option(const Option&) = delete;
  Option& operator=(const Option&) = delete;

  Option* check(const Validator& validator);
  Option* transform(const Validator& validator);
  Option* required(bool value = true);
  Option* group(const std::string& name);
  Option* description(const std::string& text);
  Option* default_str(const std::string& text);
  Option* capture_default_str();
  Option* expected(int count);
  Option* expected(int least, int most);
  Option* delimiter(char separator);
  /// Of several values the last counts.
  Option* take_last();
  Option* needs(Option* other);
  Option* needs(const std::string& name);
  Option* excludes(Option* other);
  Option* excludes(const std::string& name);

  /// How often it stands on the command line.
  size_t count() const;
  void clear();
  void add_result(const std::string& text);
  /// Sets the variable from the results. Throws Error for a value that the checks refuse.
  void run_callback();

  std::string get_name(bool positional = false) const;
  bool get_positional() const;
  const std::vector<std::string>& get_lnames() const;  // without dashes
  const std::vector<std::string>& get_snames() const;
  std::string get_description() const;
  std::string get_group() const;
  std::string get_type_name() const;  // with what the checks add to it
  std::string get_default_str() const;
  bool get_required() const;
  int get_expected_max() const;
  int get_items_expected_max() const;  // 0: a flag
  std::set<Option*> get_excludes() const;

 private:
  friend class App;
  ::CLI::Option* option_;
  Registry* registry_;
};

/// A command, or the program as a whole.
class App {
 public:
  explicit App(const std::string& description = "", const std::string& name = "");
  App(::CLI::App* app, Registry* registry);
  App(const App&) = delete;
  App& operator=(const App&) = delete;
  ~App();

  /// The value is set by parse() and must live until then.
  template <OptionValue T>
  Option* add_option(const std::string& names, T& value, const std::string& description = "");
  Option* add_flag(const std::string& names, bool& value, const std::string& description = "");
  App* add_subcommand(const std::string& name, const std::string& description = "");
  Option* set_help_flag(const std::string& names, const std::string& description);
  Option* set_help_all_flag(const std::string& names, const std::string& description);
  Option* set_version_flag(const std::string& names, const std::function<std::string()>& text,
                           const std::string& description);
  App* require_subcommand(int count);
  App* footer(const std::string& text);
  /// What parse() runs when the command was given.
  App* callback(const std::function<void()>& run);
  Option* get_option(const std::string& name);
  bool remove_option(Option* option);

  /// Reads a command line and runs the commands in it. Throws ParseError where it cannot be read,
  /// CallForHelp, CallForAllHelp, and Success with the version's text.
  void parse(int argc, const char* const* argv);
  /// The same of arguments without the program's name, the last one first.
  void parse(std::vector<std::string> arguments);

  /// How often the command line has an option.
  size_t count(const std::string& name) const;
  std::vector<std::string> remaining() const;  // the arguments that nothing took
  std::string get_name() const;
  std::string get_description() const;
  std::string get_footer() const;
  const App* get_parent() const;  // null: the program
  std::vector<Option*> get_options();
  std::vector<const Option*> get_options() const;
  std::vector<App*> get_subcommands() const;  // those on the command line
  /// All that the filter accepts, on the command line or not.
  std::vector<App*> get_subcommands(const std::function<bool(App*)>& filter);
  std::vector<const App*> get_subcommands(const std::function<bool(const App*)>& filter) const;

 private:
  std::unique_ptr<::CLI::App> own_app_;     // of the program
  std::unique_ptr<Registry> own_registry_;  // likewise
  ::CLI::App* app_;
  Registry* registry_;
};

}  // namespace mixtral::cli
