#include "cli/command_line.h"

#include <CLI/CLI.hpp>
#include <map>
#include <utility>

namespace mixtral::cli {

struct Registry {
  std::map<const ::CLI::Option*, std::unique_ptr<Option>> options;
  std::map<const ::CLI::App*, std::unique_ptr<App>> apps;  // without the program itself
  const ::CLI::App* root = nullptr;
  App* program = nullptr;

  Option* of(::CLI::Option* option) {
    auto& known = options[option];
    if (!known) known = std::make_unique<Option>(option, this);
    return known.get();
  }
  App* of(::CLI::App* app) {
    if (app == root) return program;
    auto& known = apps[app];
    if (!known) known = std::make_unique<App>(app, this);
    return known.get();
  }
};

namespace {

/// Runs `work`, and throws this file's errors for CLI11's.
template <class Work>
void translated(const Work& work) {
  try {
    work();
  } catch (const ::CLI::CallForHelp& request) {
    throw CallForHelp(request.what());
  } catch (const ::CLI::CallForAllHelp& request) {
    throw CallForAllHelp(request.what());
  } catch (const ::CLI::Success& request) {
    throw Success(request.what());
  } catch (const ::CLI::ParseError& error) {
    throw ParseError(error.what());
  } catch (const ::CLI::Error& error) {
    throw Error(error.what());
  }
}

}  // namespace

Validator::Validator(const Check& check, const std::string& description)
    : Validator(::CLI::Validator(check, description)) {}
Validator::Validator(const ::CLI::Validator& validator)
    : validator_(std::make_shared<const ::CLI::Validator>(validator)) {}
IsMember::IsMember(const std::vector<std::string>& members) : Validator(::CLI::IsMember(members)) {}
Range::Range(int64_t least, int64_t most) : Validator(::CLI::Range(least, most)) {}
Range::Range(double least, double most) : Validator(::CLI::Range(least, most)) {}
AsSizeValue::AsSizeValue(bool kb_is_1000) : Validator(::CLI::AsSizeValue(kb_is_1000)) {}

Option* Option::check(const Validator& validator) {
  option_->check(*validator.validator_);
  return this;
}
Option* Option::transform(const Validator& validator) {
  option_->transform(*validator.validator_);
  return this;
}
Option* Option::required(bool value) {
  option_->required(value);
  return this;
}
Option* Option::group(const std::string& name) {
  option_->group(name);
  return this;
}
Option* Option::description(const std::string& text) {
  option_->description(text);
  return this;
}
Option* Option::default_str(const std::string& text) {
  option_->default_str(text);
  return this;
}
Option* Option::capture_default_str() {
  option_->capture_default_str();
  return this;
}
Option* Option::expected(int count) {
  option_->expected(count);
  return this;
}
Option* Option::expected(int least, int most) {
  option_->expected(least, most);
  return this;
}
Option* Option::delimiter(char separator) {
  option_->delimiter(separator);
  return this;
}
Option* Option::take_last() {
  option_->take_last();
  return this;
}
Option* Option::needs(Option* other) {
  option_->needs(other->option_);
  return this;
}
Option* Option::needs(const std::string& name) {
  option_->needs(name);
  return this;
}
Option* Option::excludes(Option* other) {
  option_->excludes(other->option_);
  return this;
}
Option* Option::excludes(const std::string& name) {
  option_->excludes(name);
  return this;
}
size_t Option::count() const { return option_->count(); }
void Option::clear() { option_->clear(); }
void Option::add_result(const std::string& text) { option_->add_result(text); }
void Option::run_callback() {
  translated([&] { option_->run_callback(); });
}
std::string Option::get_name(bool positional) const { return option_->get_name(positional); }
bool Option::get_positional() const { return option_->get_positional(); }
const std::vector<std::string>& Option::get_lnames() const { return option_->get_lnames(); }
const std::vector<std::string>& Option::get_snames() const { return option_->get_snames(); }
std::string Option::get_description() const { return option_->get_description(); }
std::string Option::get_group() const { return option_->get_group(); }
std::string Option::get_type_name() const { return option_->get_type_name(); }
std::string Option::get_default_str() const { return option_->get_default_str(); }
bool Option::get_required() const { return option_->get_required(); }
int Option::get_expected_max() const { return option_->get_expected_max(); }
int Option::get_items_expected_max() const { return option_->get_items_expected_max(); }
std::set<Option*> Option::get_excludes() const {
  std::set<Option*> others;
  for (::CLI::Option* other : option_->get_excludes()) others.insert(registry_->of(other));
  return others;
}

App::App(const std::string& description, const std::string& name)
    : own_app_(std::make_unique<::CLI::App>(description, name)),
      own_registry_(std::make_unique<Registry>()),
      app_(own_app_.get()),
      registry_(own_registry_.get()) {
  registry_->root = app_;
  registry_->program = this;
}
App::App(::CLI::App* app, Registry* registry) : app_(app), registry_(registry) {}
App::~App() = default;

template <OptionValue T>
Option* App::add_option(const std::string& names, T& value, const std::string& description) {
  return registry_->of(app_->add_option(names, value, description));
}
template Option* App::add_option(const std::string&, std::string&, const std::string&);
template Option* App::add_option(const std::string&, int32_t&, const std::string&);
template Option* App::add_option(const std::string&, int64_t&, const std::string&);
template Option* App::add_option(const std::string&, uint32_t&, const std::string&);
template Option* App::add_option(const std::string&, uint64_t&, const std::string&);
template Option* App::add_option(const std::string&, float&, const std::string&);
template Option* App::add_option(const std::string&, double&, const std::string&);
template Option* App::add_option(const std::string&, std::optional<std::string>&,
                                 const std::string&);
template Option* App::add_option(const std::string&, std::optional<int32_t>&, const std::string&);
template Option* App::add_option(const std::string&, std::optional<int64_t>&, const std::string&);
template Option* App::add_option(const std::string&, std::optional<uint64_t>&, const std::string&);
template Option* App::add_option(const std::string&, std::optional<float>&, const std::string&);
template Option* App::add_option(const std::string&, std::optional<double>&, const std::string&);
template Option* App::add_option(const std::string&, std::vector<std::string>&, const std::string&);
template Option* App::add_option(const std::string&, std::vector<int32_t>&, const std::string&);
template Option* App::add_option(const std::string&, std::vector<int64_t>&, const std::string&);
template Option* App::add_option(const std::string&, std::vector<double>&, const std::string&);

Option* App::add_flag(const std::string& names, bool& value, const std::string& description) {
  return registry_->of(app_->add_flag(names, value, description));
}
App* App::add_subcommand(const std::string& name, const std::string& description) {
  return registry_->of(app_->add_subcommand(name, description));
}
Option* App::set_help_flag(const std::string& names, const std::string& description) {
  return registry_->of(app_->set_help_flag(names, description));
}
Option* App::set_help_all_flag(const std::string& names, const std::string& description) {
  return registry_->of(app_->set_help_all_flag(names, description));
}
Option* App::set_version_flag(const std::string& names, const std::function<std::string()>& text,
                              const std::string& description) {
  return registry_->of(app_->set_version_flag(names, text, description));
}
App* App::require_subcommand(int count) {
  app_->require_subcommand(count);
  return this;
}
App* App::footer(const std::string& text) {
  app_->footer(text);
  return this;
}
App* App::callback(const std::function<void()>& run) {
  app_->callback(run);
  return this;
}
Option* App::get_option(const std::string& name) { return registry_->of(app_->get_option(name)); }
bool App::remove_option(Option* option) {
  ::CLI::Option* const removed = option->option_;
  if (!app_->remove_option(removed)) return false;
  registry_->options.erase(removed);
  return true;
}

void App::parse(int argc, const char* const* argv) {
  translated([&] { app_->parse(argc, argv); });
}
void App::parse(std::vector<std::string> arguments) {
  translated([&] { app_->parse(std::move(arguments)); });
}

size_t App::count(const std::string& name) const { return app_->count(name); }
std::vector<std::string> App::remaining() const { return app_->remaining(); }
std::string App::get_name() const { return app_->get_name(); }
std::string App::get_description() const { return app_->get_description(); }
std::string App::get_footer() const { return app_->get_footer(); }
const App* App::get_parent() const {
  ::CLI::App* const parent = app_->get_parent();
  return parent ? registry_->of(parent) : nullptr;
}
std::vector<Option*> App::get_options() {
  std::vector<Option*> options;
  for (::CLI::Option* option : app_->get_options()) options.push_back(registry_->of(option));
  return options;
}
std::vector<const Option*> App::get_options() const {
  std::vector<const Option*> options;
  for (::CLI::Option* option : app_->get_options()) options.push_back(registry_->of(option));
  return options;
}
std::vector<App*> App::get_subcommands() const {
  std::vector<App*> commands;
  for (::CLI::App* command : app_->get_subcommands()) commands.push_back(registry_->of(command));
  return commands;
}
std::vector<App*> App::get_subcommands(const std::function<bool(App*)>& filter) {
  std::vector<App*> commands;
  for (::CLI::App* each : app_->get_subcommands([](::CLI::App*) { return true; }))
    if (App* const command = registry_->of(each); filter(command)) commands.push_back(command);
  return commands;
}
std::vector<const App*> App::get_subcommands(const std::function<bool(const App*)>& filter) const {
  std::vector<const App*> commands;
  for (::CLI::App* each : app_->get_subcommands([](::CLI::App*) { return true; }))
    if (const App* const command = registry_->of(each); filter(command))
      commands.push_back(command);
  return commands;
}

}  // namespace mixtral::cli
