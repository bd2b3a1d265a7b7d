// Global functions, tests, and how filters and tests are found and called.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>

#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

constexpr Integer kLongestRange = 100000;  // as jinja2's sandbox

Value range(Interpreter& run, Arguments& given) {
  const auto& p = given.positional;
  if (p.empty() || p.size() > 3 || !given.named.empty())
    throw RenderError("range needs 1 to 3 whole numbers");
  const Integer start = p.size() > 1 ? whole_number(p[0]) : 0;
  const Integer stop = whole_number(p[p.size() > 1 ? 1 : 0]);
  const Integer step = p.size() > 2 ? whole_number(p[2]) : 1;
  if (step == 0) throw RenderError("range() arg 3 must not be zero");
  const double turns =
      (static_cast<double>(stop) - static_cast<double>(start)) / static_cast<double>(step);
  if (turns > static_cast<double>(kLongestRange))
    throw RenderError("Range too big. The sandbox blocks ranges larger than 100000.");
  std::vector<Value> items;
  for (Integer i = start; step > 0 ? i < stop : i > stop; i += step) items.push_back(Value::of(i));
  run.reserve(items.size() * sizeof(Value));
  return range_value(std::move(items), start, stop, step);
}

Value dictionary(const Arguments& given, Value::Kind kind) {
  Value result = Value::dict(kind);
  if (given.positional.size() > 1) throw RenderError("expected at most one positional argument");
  for (const Value& initial : given.positional) {
    if (initial.is(Value::Kind::dict)) {
      for (const auto& [key, value] : initial.members().items) result.set(key, value);
      continue;
    }
    for (const Value& pair : iterate(initial)) {
      const std::vector<Value> items = iterate(pair);
      if (items.size() != 2) throw RenderError("expected pairs of a key and a value");
      result.set(items[0], items[1]);
    }
  }
  for (const auto& [name, value] : given.named) result.set(Value::of(name), value);
  return result;
}

Value strftime_now(Interpreter&, Arguments& given) {
  const auto a = bind(given, {"format"}, "strftime_now");
  if (!a[0]) throw RenderError("strftime_now needs a format");
  const std::string& format = plain_text(*a[0]);
  if (format.size() > 1000) throw RenderError("strftime_now: the format is too long");
  if (format.empty()) return Value::of("");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  // The program never sets a locale, so names are English. A space at the end tells an empty text
  // from one that does not fit.
  std::string text(16384, '\0');
  text.resize(std::strftime(text.data(), text.size(), (format + " ").c_str(), &local));
  if (text.empty()) throw RenderError("strftime_now: the text is too long");
  text.pop_back();
  return Value::of(std::move(text));
}

Value raise_exception(Interpreter&, Arguments& given) {
  throw RenderError(given.positional.empty() ? "the template refuses this conversation"
                                             : to_text(given.positional[0]));
}

/// A function that gives its text from the second call on.
Value joiner(Interpreter&, Arguments& given) {
  const auto a = bind(given, {"sep"}, "joiner");
  return Value::function(
      "joiner", [separator = a[0].value_or(Value::of(", ")), used = std::make_shared<bool>(false)](
                    Interpreter&, Arguments&) {
        return std::exchange(*used, true) ? separator : Value::of("");
      });
}

Value cycler(Interpreter&, Arguments& given) {
  if (given.positional.empty()) throw RenderError("at least one item has to be provided");
  const auto place = std::make_shared<size_t>(0);
  const std::vector<Value> items = given.positional;
  Value result = Value::function("cycler", [](Interpreter&, Arguments&) -> Value {
    throw RenderError("a cycler cannot be called; use its next()");
  });
  result.callee().attributes = {
      {"next", Value::function("next",
                               [place, items](Interpreter&, Arguments&) {
                                 const Value& item = items[*place];
                                 *place = (*place + 1) % items.size();
                                 return item;
                               })},
      {"reset", Value::function("reset", [place](Interpreter&, Arguments&) {
         *place = 0;
         return Value::none();
       })}};
  return result;
}

template <Value::Kind K>
bool is_kind(Interpreter&, const Value& value, Arguments&) {
  return value.is(K);
}
bool is_defined(Interpreter&, const Value& value, Arguments&) {
  return !value.is(Value::Kind::undefined);
}
bool is_number(Interpreter&, const Value& value, Arguments&) { return value.is_number(); }
bool is_true(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::boolean) && truth(value);
}
bool is_false(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::boolean) && !truth(value);
}
bool is_iterable(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::undefined) || value.is(Value::Kind::string) ||
         value.is(Value::Kind::dict) || value.is_list_like();
}
bool is_sequence(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::undefined) || value.is(Value::Kind::string) ||
         value.is(Value::Kind::dict) || value.is(Value::Kind::list) ||
         value.is(Value::Kind::tuple) || value.is(Value::Kind::range);
}
bool is_callable(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::function) || value.is(Value::Kind::undefined);
}
bool has_case(Interpreter& run, const Value& value, const char* method) {
  Arguments none;
  return truth(run.call(find_method(Value::of(to_text(value)), method), none));
}
bool is_lower_case(Interpreter& run, const Value& value, Arguments&) {
  return has_case(run, value, "islower");
}
bool is_upper_case(Interpreter& run, const Value& value, Arguments&) {
  return has_case(run, value, "isupper");
}
bool divisible(const Value& value, Integer by, Integer rest) {
  if (by == 0) throw RenderError("division by zero");
  if (by == -1) by = 1;
  const Integer remainder = whole_number(value) % by;
  return (remainder < 0 ? remainder + (by < 0 ? -by : by) : remainder) == rest;
}
bool is_odd(Interpreter&, const Value& value, Arguments&) {
  if (value.is(Value::Kind::real)) return std::abs(std::fmod(value.real(), 2)) == 1;
  return divisible(value, 2, 1);
}
bool is_even(Interpreter&, const Value& value, Arguments&) {
  if (value.is(Value::Kind::real)) return std::fmod(value.real(), 2) == 0;
  return divisible(value, 2, 0);
}

const Value& other(const Arguments& given) {
  if (given.positional.size() != 1 || !given.named.empty())
    throw RenderError("the test needs one argument");
  return given.positional[0];
}
bool is_divisible(Interpreter&, const Value& value, Arguments& given) {
  return divisible(value, whole_number(other(given)), 0);
}
bool is_same(Interpreter&, const Value& value, Arguments& given) {
  return value.same(other(given));
}
bool is_in(Interpreter&, const Value& value, Arguments& given) {
  return contains(other(given), value);
}
bool is_equal(Interpreter&, const Value& value, Arguments& given) {
  return equal(value, other(given));
}
bool is_unequal(Interpreter&, const Value& value, Arguments& given) {
  return !equal(value, other(given));
}
bool is_less(Interpreter&, const Value& value, Arguments& given) {
  return compare(value, other(given)) < 0;
}
bool is_at_most(Interpreter&, const Value& value, Arguments& given) {
  return compare(value, other(given)) <= 0;
}
bool is_greater(Interpreter&, const Value& value, Arguments& given) {
  return compare(value, other(given)) > 0;
}
bool is_at_least(Interpreter&, const Value& value, Arguments& given) {
  return compare(value, other(given)) >= 0;
}
bool names_filter(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::string) && is_filter(value.text());
}
bool names_test(Interpreter&, const Value& value, Arguments&) {
  return value.is(Value::Kind::string) && is_test(value.text());
}
bool never(Interpreter&, const Value&, Arguments&) { return false; }

struct NamedTest {
  std::string_view name;
  TestFunction function;
  bool takes_argument;
};

constexpr NamedTest kTests[] = {
    {"defined", is_defined, false},
    {"undefined", is_kind<Value::Kind::undefined>, false},
    {"none", is_kind<Value::Kind::none>, false},
    {"boolean", is_kind<Value::Kind::boolean>, false},
    {"true", is_true, false},
    {"false", is_false, false},
    {"integer", is_kind<Value::Kind::integer>, false},
    {"float", is_kind<Value::Kind::real>, false},
    {"number", is_number, false},
    {"string", is_kind<Value::Kind::string>, false},
    {"mapping", is_kind<Value::Kind::dict>, false},
    {"iterable", is_iterable, false},
    {"sequence", is_sequence, false},
    {"callable", is_callable, false},
    {"lower", is_lower_case, false},
    {"upper", is_upper_case, false},
    {"odd", is_odd, false},
    {"even", is_even, false},
    {"escaped", never, false},
    {"filter", names_filter, false},
    {"test", names_test, false},
    {"divisibleby", is_divisible, true},
    {"sameas", is_same, true},
    {"in", is_in, true},
    {"eq", is_equal, true},
    {"equalto", is_equal, true},
    {"==", is_equal, true},
    {"ne", is_unequal, true},
    {"!=", is_unequal, true},
    {"lt", is_less, true},
    {"lessthan", is_less, true},
    {"<", is_less, true},
    {"le", is_at_most, true},
    {"<=", is_at_most, true},
    {"gt", is_greater, true},
    {"greaterthan", is_greater, true},
    {">", is_greater, true},
    {"ge", is_at_least, true},
    {">=", is_at_least, true},
};

const NamedTest* named_test(std::string_view name) {
  const auto* found = std::ranges::find(kTests, name, &NamedTest::name);
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace

Value range_value(std::vector<Value> items, Integer start, Integer stop, Integer step) {
  std::string name = fmt::format("range({}, {}", number_text(start), number_text(stop));
  if (step != 1) name += ", " + number_text(step);
  name += ')';
  return Value::list(std::move(items), Value::Kind::range, std::move(name));
}

const std::unordered_map<std::string, Value>& global_functions() {
  static const std::unordered_map<std::string, Value> functions = {
      {"range", Value::function("range", range)},
      {"dict", Value::function("dict",
                               [](Interpreter&, Arguments& given) {
                                 return dictionary(given, Value::Kind::dict);
                               })},
      {"namespace", Value::function("namespace",
                                    [](Interpreter& interpreter, Arguments& given) {
                                      return interpreter.keep(
                                          dictionary(given, Value::Kind::space));
                                    })},
      {"raise_exception", Value::function("raise_exception", raise_exception)},
      {"strftime_now", Value::function("strftime_now", strftime_now)},
      {"joiner", Value::function("joiner", joiner)},
      {"cycler", Value::function("cycler", cycler)},
      {"lipsum", Value::function("lipsum",
                                 [](Interpreter&, Arguments&) -> Value {
                                   throw RenderError("lipsum() is not supported");
                                 })},
  };
  return functions;
}

std::vector<std::optional<Value>> bind(const Arguments& given,
                                       std::span<const std::string_view> names,
                                       std::string_view function) {
  if (given.positional.size() > names.size()) {
    throw RenderError(fmt::format("{} takes at most {} arguments, found {}", function, names.size(),
                                  given.positional.size()));
  }
  std::vector<std::optional<Value>> values(names.size());
  for (size_t i = 0; i < given.positional.size(); ++i) values[i] = given.positional[i];
  for (const auto& [name, value] : given.named) {
    const auto place = std::ranges::find(names, name);
    if (place == names.end())
      throw RenderError(fmt::format("{} has no argument '{}'", function, name));
    auto& slot = values[static_cast<size_t>(place - names.begin())];
    if (slot)
      throw RenderError(fmt::format("{}: the argument '{}' is given twice", function, name));
    slot = value;
  }
  return values;
}

bool is_filter(std::string_view name) {
  return find_text_filter(name) != nullptr || find_list_filter(name) != nullptr;
}

bool is_test(std::string_view name) { return named_test(name) != nullptr; }

TestFunction find_test(std::string_view name) {
  const NamedTest* found = named_test(name);
  return found == nullptr ? nullptr : found->function;
}

Value Interpreter::filter(const std::string& name, const Value& value, Arguments& given) {
  const Depth depth(*this);
  spend(1 + steps_through(value));
  FilterFunction function = find_text_filter(name);
  if (function == nullptr) function = find_list_filter(name);
  if (function == nullptr) throw RenderError(fmt::format("there is no filter named '{}'", name));
  return function(*this, value, given);
}

bool Interpreter::test(const std::string& name, const Value& value, Arguments& given) {
  spend(1 + steps_through(value));
  const NamedTest* found = named_test(name);
  if (found == nullptr) throw RenderError(fmt::format("there is no test named '{}'", name));
  if (!found->takes_argument && (!given.positional.empty() || !given.named.empty()))
    throw RenderError(fmt::format("the test '{}' takes no argument", name));
  return found->function(*this, value, given);
}

}  // namespace mixtral::jinja
