// Filters that work on text and numbers.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "text/jinja_interpreter.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

/// The value's own method of that name.
Value by_method(Interpreter& run, const Value& value, const char* name, Arguments& given) {
  return run.call(find_method(Value::of(to_text(value)), name), given);
}

Value upper(Interpreter& run, const Value& value, Arguments&) {
  return run.text(to_upper(to_text(value)));
}

Value lower(Interpreter& run, const Value& value, Arguments&) {
  return run.text(to_lower(to_text(value), FinalSigma::yes));
}

Value title(Interpreter& run, const Value& value, Arguments&) {
  const std::string all = to_text(value);
  std::string result, word;
  const auto finish = [&] {
    if (word.empty()) return;
    const size_t size = first_character(word).length;
    result += to_upper(word.substr(0, size)) + to_lower(word.substr(size), FinalSigma::yes);
    word.clear();
  };
  for (std::string_view rest = all; !rest.empty();) {
    const Character c = first_character(rest);
    const bool separates = is_white_space(c.code) || c.code == '-' || c.code == '(' ||
                           c.code == '{' || c.code == '[' || c.code == '<';
    if (separates) finish();
    (separates ? result : word) += rest.substr(0, c.length);
    rest.remove_prefix(c.length);
  }
  finish();
  return run.text(std::move(result));
}

Value capitalize(Interpreter& run, const Value& value, Arguments& given) {
  return by_method(run, value, "capitalize", given);
}

Value trim(Interpreter& run, const Value& value, Arguments& given) {
  Arguments rest;
  if (const auto chars = bind(given, {"chars"}, "trim")[0]) rest.positional.push_back(*chars);
  return by_method(run, value, "strip", rest);
}

Value center(Interpreter& run, const Value& value, Arguments& given) {
  Arguments rest;
  rest.positional.push_back(bind(given, {"width"}, "center")[0].value_or(Value::of(80)));
  return by_method(run, value, "center", rest);
}

Value replace(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"old", "new", "count"}, "replace");
  if (!a[0] || !a[1]) throw RenderError("replace needs what to replace, and by what");
  Arguments rest{{Value::of(to_text(*a[0])), Value::of(to_text(*a[1]))}, {}};
  if (a[2] && !a[2]->is(Value::Kind::none)) rest.positional.push_back(*a[2]);
  return by_method(run, value, "replace", rest);
}

Value indent(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"width", "first", "blank"}, "indent");
  if (!value.is(Value::Kind::string)) plain_text(value);
  std::string indention(4, ' ');
  if (a[0] && a[0]->is(Value::Kind::string)) {
    indention = a[0]->text();
  } else if (a[0]) {
    const Integer width = std::clamp<Integer>(whole_number(*a[0]), 0, 1 << 20);
    indention.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = a[2] && truth(*a[2]);
  Arguments none;
  // As Python does it, a newline is added first, so that the last line counts.
  const Value all = run.text(value.text() + "\n");
  const std::vector<Value> lines = run.call(find_method(all, "splitlines"), none).items().items;
  std::string result = a[1] && truth(*a[1]) ? indention : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) result += '\n';
    if (i > 0 && (blank || !lines[i].text().empty())) result += indention;
    result += lines[i].text();
    run.reserve(indention.size());
  }
  return run.text(std::move(result));
}

Value truncate(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"length", "killwords", "end", "leeway"}, "truncate");
  const std::string all = plain_text(value);
  const std::string end = a[2] ? to_text(*a[2]) : "...";
  const Integer length = a[0] ? whole_number(*a[0]) : 255;
  const Integer leeway = a[3] && !a[3]->is(Value::Kind::none) ? whole_number(*a[3]) : 5;
  const auto end_length = static_cast<Integer>(count_characters(end));
  if (length < end_length || leeway < 0) throw RenderError("truncate: the length is too small");
  if (static_cast<Integer>(count_characters(all)) <= length + leeway) return value;
  std::string_view rest = all;
  for (Integer i = length - end_length; i > 0 && !rest.empty(); --i)
    rest.remove_prefix(first_character(rest).length);
  std::string kept = all.substr(0, all.size() - rest.size());
  if (!(a[1] && truth(*a[1])))
    if (const size_t space = kept.rfind(' '); space != std::string::npos) kept.resize(space);
  return run.text(kept + end);
}

Value wordcount(Interpreter&, const Value& value, Arguments&) {
  const std::string all = to_text(value);
  size_t words = 0;
  bool inside = false;
  for (std::string_view rest = all; !rest.empty();) {
    const Character c = first_character(rest);
    const bool word = is_word_character(c.code);
    words += word && !inside ? 1 : 0;
    inside = word;
    rest.remove_prefix(c.length);
  }
  return Value::of(words);
}

Value to_int(Interpreter&, const Value& value, Arguments& given) {
  const auto a = bind(given, {"default", "base"}, "int");
  Value otherwise = a[0].value_or(Value::of(0));
  const Integer base = a[1] ? whole_number(*a[1]) : 10;
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  const auto of_real = [&](double real) {
    if (!std::isfinite(real) || std::abs(real) > 1e38) return otherwise;
    return Value::of(static_cast<Integer>(real));
  };
  if (value.is_whole()) return Value::of(value.integer());
  if (value.is(Value::Kind::real)) return of_real(value.real());
  if (!value.is(Value::Kind::string)) return otherwise;
  Arguments none;
  std::string digits = value.text();
  std::erase(digits, '_');
  const size_t begin = digits.find_first_not_of(" \t\n\r\f\v");
  if (begin == std::string::npos) return otherwise;
  digits = digits.substr(begin, digits.find_last_not_of(" \t\n\r\f\v") - begin + 1);
  char* end = nullptr;
  errno = 0;
  if (base == 0 || (base >= 2 && base <= 36)) {
    const long long whole = std::strtoll(digits.c_str(), &end, static_cast<int>(base));
    if (end == digits.c_str() + digits.size() && errno == 0)
      return Value::of(static_cast<Integer>(whole));
  }
  const double real = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size() || digits.find_first_of("xX") != std::string::npos)
    return otherwise;
  return of_real(real);
}

Value to_float(Interpreter&, const Value& value, Arguments& given) {
  const auto a = bind(given, {"default"}, "float");
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (value.is_number()) return Value::of(value.real());
  Value otherwise = a[0].value_or(Value::of(0.0));
  if (!value.is(Value::Kind::string)) return otherwise;
  std::string digits = value.text();
  std::erase(digits, '_');
  const size_t begin = digits.find_first_not_of(" \t\n\r\f\v");
  if (begin == std::string::npos) return otherwise;
  digits = digits.substr(begin, digits.find_last_not_of(" \t\n\r\f\v") - begin + 1);
  char* end = nullptr;
  const double real = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size() || digits.find_first_of("xX") != std::string::npos)
    return otherwise;
  return Value::of(real);
}

Value round(Interpreter&, const Value& value, Arguments& given) {
  const auto a = bind(given, {"precision", "method"}, "round");
  const Integer precision = a[0] ? whole_number(*a[0]) : 0;
  const std::string method = a[1] ? plain_text(*a[1]) : "common";
  if (!value.is_number()) whole_number(value);
  if (precision < -300 || precision > 300) throw RenderError("round: the precision is too large");
  const auto places = static_cast<int>(precision);
  const double scale = std::pow(10.0, places);
  if (method == "ceil") return Value::of(std::ceil(value.real() * scale) / scale);
  if (method == "floor") return Value::of(std::floor(value.real() * scale) / scale);
  if (method != "common") throw RenderError("round: the method must be common, ceil or floor");
  if (value.is_whole() && places >= 0) return Value::of(value.integer());
  // Printing rounds the exact value, halves to even, as Python does.
  const double rounded =
      places >= 0 ? std::strtod(fmt::format("{:.{}f}", value.real(), places).c_str(), nullptr)
                  : std::nearbyint(value.real() * scale) / scale;
  return value.is_whole() ? Value::of(static_cast<Integer>(rounded)) : Value::of(rounded);
}

Value abs(Interpreter&, const Value& value, Arguments&) {
  if (value.is(Value::Kind::real)) return Value::of(std::abs(value.real()));
  const Integer number = whole_number(value);
  return Value::of(number < 0 ? -number : number);
}

Value string(Interpreter& run, const Value& value, Arguments&) { return run.text(to_text(value)); }

Value escape(Interpreter& run, const Value& value, Arguments&) {
  std::string result;
  for (const char c : to_text(value)) {
    constexpr std::string_view special = "&<>'\"";
    constexpr std::array<std::string_view, 5> names = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    if (const size_t place = special.find(c); place != std::string_view::npos)
      result += names[place];
    else
      result += c;
  }
  return run.text(std::move(result));
}

Value urlencode(Interpreter& run, const Value& value, Arguments&) {
  if (value.is(Value::Kind::dict) || value.is_list_like())
    throw RenderError("urlencode of a list or dictionary is not supported");
  std::string result;
  for (const char c : to_text(value)) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("_.-~/").find(c) != std::string_view::npos;
    if (plain)
      result += c;
    else
      result += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return run.text(std::move(result));
}

Value filesizeformat(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"binary"}, "filesizeformat");
  const bool binary = a[0] && truth(*a[0]);
  Arguments none;
  const double bytes = to_float(run, value, none).real();
  const double base = binary ? 1024 : 1000;
  if (bytes == 1) return Value::of("1 Byte");
  if (bytes < base) return Value::of(fmt::format("{:.0f} Bytes", std::trunc(bytes)));
  constexpr std::string_view prefixes = "kMGTPEZY";
  double unit = base;
  for (size_t i = 0;; ++i) {
    unit *= base;
    if (bytes < unit || i + 1 == prefixes.size()) {
      const char prefix = binary && i == 0 ? 'K' : prefixes[i];
      return Value::of(
          fmt::format("{:.1f} {}{}", base * bytes / unit, prefix, binary ? "iB" : "B"));
    }
  }
}

Value format(Interpreter& run, const Value& value, Arguments& given) {
  if (!given.named.empty() && !given.positional.empty())
    throw RenderError("format takes values or named values, not both");
  if (given.named.empty())
    return run.text(percent_format(to_text(value), Value::tuple(given.positional)));
  const Value named = Value::dict();
  for (const auto& [name, item] : given.named) named.set(Value::of(name), item);
  return run.text(percent_format(to_text(value), named));
}

Value tojson(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"ensure_ascii", "indent", "separators", "sort_keys"}, "tojson");
  JsonStyle style;
  style.ensure_ascii = a[0] && truth(*a[0]);
  style.sort_keys = a[3] && truth(*a[3]);
  if (a[1] && a[1]->is(Value::Kind::string)) {
    style.indent = a[1]->text();
  } else if (a[1] && !a[1]->is(Value::Kind::none)) {
    const Integer width = std::clamp<Integer>(whole_number(*a[1]), 0, 64);
    style.indent = std::string(static_cast<size_t>(width), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (a[2] && !a[2]->is(Value::Kind::none)) {
    const std::vector<Value> separators = iterate(*a[2]);
    if (separators.size() != 2) throw RenderError("tojson: separators must be two texts");
    style.item_separator = plain_text(separators[0]);
    style.key_separator = plain_text(separators[1]);
  }
  return run.text(to_json(value, style));
}

Value defaulted(Interpreter&, const Value& value, Arguments& given) {
  const auto a = bind(given, {"default_value", "boolean"}, "default");
  const bool replaces = value.is(Value::Kind::undefined) || (a[1] && truth(*a[1]) && !truth(value));
  return replaces ? a[0].value_or(Value::of("")) : value;
}

Value refused(Interpreter&, const Value&, Arguments&) {
  throw RenderError("this filter is not supported");
}

struct Named {
  std::string_view name;
  FilterFunction function;
};

constexpr Named kFilters[] = {
    {"upper", upper},       {"lower", lower},
    {"title", title},       {"capitalize", capitalize},
    {"trim", trim},         {"center", center},
    {"replace", replace},   {"indent", indent},
    {"truncate", truncate}, {"wordcount", wordcount},
    {"int", to_int},        {"float", to_float},
    {"round", round},       {"abs", abs},
    {"string", string},     {"escape", escape},
    {"e", escape},          {"forceescape", escape},
    {"safe", string},       {"urlencode", urlencode},
    {"format", format},     {"filesizeformat", filesizeformat},
    {"tojson", tojson},     {"default", defaulted},
    {"d", defaulted},       {"pprint", refused},
    {"random", refused},    {"striptags", refused},
    {"urlize", refused},    {"wordwrap", refused},
    {"xmlattr", refused},
};

}  // namespace

FilterFunction find_text_filter(std::string_view name) {
  const auto* found = std::ranges::find(kFilters, name, &Named::name);
  return found == std::end(kFilters) ? nullptr : found->function;
}

}  // namespace mixtral::jinja
