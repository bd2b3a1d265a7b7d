#include "constrain/json_text.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "base/error.h"
#include "constrain/number_range.h"
#include "text/unicode.h"

namespace mixtral::constrain {
namespace {

using Part = Expression::Part;

struct ShortEscape {
  char character, letter;
};
constexpr std::array<ShortEscape, 7> kShortEscapes = {
    {{'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}}};

const ShortEscape* short_escape(int32_t code) {
  for (const ShortEscape& escape : kShortEscapes)
    if (escape.character == code) return &escape;
  return nullptr;
}

std::string string_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (const ShortEscape* escape = short_escape(c))
      out += {'\\', escape->letter};
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    else
      out += c;
  }
  return out + "\"";
}

}  // namespace

std::string scalar_text(const Json& json) {
  switch (json.kind()) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return json.as_bool() ? "true" : "false";
    case Json::Kind::integer:
      return fmt::format("{}", json.as_int());
    case Json::Kind::number:
      return fmt::format("{}", json.as_double());
    case Json::Kind::string:
      return string_text(json.as_string());
    case Json::Kind::array:
    case Json::Kind::object:
      break;
  }
  CHECK(false, "no scalar");
}

JsonText::JsonText(Expression& expression, const JsonLayout& layout) : expression_(expression) {
  auto& e = expression;
  const auto space = e.add_rule("white space");
  e.define(
      space,
      e.choice({e.empty(), e.text(" "),
                e.sequence({e.text("\n"), e.repeat(e.chars(CharSet::of(" \t")), 0,
                                                   static_cast<uint64_t>(layout.most_indent))})}));
  space_ = e.call(space);
  colon_ = e.sequence({e.text(":"), e.optional(e.text(" "))});
  comma_ = e.sequence({e.text(","), space_});
  const auto escape = e.add_rule("an escape");
  e.define(escape, make_escape());
  escape_ = e.call(escape);
  number_ = add_numbers(e, {});

  const auto object = e.add_rule("an object"), array = e.add_rule("an array"),
             value = e.add_rule("a value");
  any_object_ = e.call(object);
  any_array_ = e.call(array);
  any_value_ = e.call(value);
  const auto list = [&](std::string_view open, Part item, std::string_view close) {
    const Part more = e.repeat(e.sequence({comma_, item}), 0);
    const Part items = e.sequence({item, more, space_, e.text(close)});
    return e.sequence({e.text(open), space_, e.choice({e.text(close), items})});
  };
  e.define(object, list("{", e.sequence({string(), colon_, any_value_}), "}"));
  e.define(array, list("[", any_value_, "]"));
  e.define(value, e.choice({string(), number_, any_object_, any_array_, e.text("true"),
                            e.text("false"), e.text("null")}));
}

Part JsonText::around(std::string_view open, Part part, std::string_view close) {
  return expression_.sequence({expression_.text(open), part, expression_.text(close)});
}

// An escape stands for one character: two escapes where it needs a surrogate pair.
Part JsonText::make_escape() {
  auto& e = expression_;
  const auto hex = [&](std::string_view digits) { return e.chars(CharSet::of(digits)); };
  const Part any = hex("0123456789abcdefABCDEF"), d = hex("dD");
  const Part character = e.choice({e.sequence({hex("0123456789abcefABCEF"), any, any, any}),
                                   e.sequence({d, hex("01234567"), any, any})});
  const Part pair =
      e.sequence({d, hex("89abAB"), any, any, e.text("\\u"), d, hex("cdefCDEF"), any, any});
  return e.sequence(
      {e.text("\\"), e.choice({e.chars(CharSet::of("\"\\/bfnrt")),
                               e.sequence({e.text("u"), e.choice({character, pair})})})});
}

Part JsonText::string(uint64_t least, std::optional<uint64_t> most) {
  const Part plain = expression_.chars(plain_chars() | CharSet::one(0x7F));
  return quoted(expression_.repeat(expression_.choice({plain, escape_}), least, most));
}

Part JsonText::character(const CharSet& set) {
  const CharSet plain = set & (plain_chars() | CharSet::one(0x7F));
  std::vector<Part> choices{expression_.chars(plain)};
  const auto add = [&](int32_t code) {
    if (!set.contains(code)) return;
    std::string text;
    append_utf8(code, text);
    const std::string quoted = string_text(text);
    choices.push_back(expression_.text(quoted.substr(1, quoted.size() - 2)));
  };
  for (int32_t code = 0; code < 0x20; ++code) add(code);
  add('"');
  add('\\');
  return expression_.choice(std::move(choices));
}

Part JsonText::text(std::string_view text) { return expression_.text(string_text(text)); }

Part JsonText::value(const Json& json) {
  auto& e = expression_;
  if (!json.is_array() && !json.is_object()) return e.text(scalar_text(json));
  std::vector<Part> parts{e.text(json.is_array() ? "[" : "{"), space_};
  const auto next = [&](Part part) {
    if (parts.size() > 2) parts.push_back(comma_);
    parts.push_back(part);
  };
  if (json.is_array()) {
    for (const Json& item : json.items()) next(value(item));
  } else {
    for (const auto& [name, member] : json.members())
      next(e.sequence({text(name), colon_, value(member)}));
  }
  if (parts.size() > 2) parts.push_back(space_);
  parts.push_back(e.text(json.is_array() ? "]" : "}"));
  return e.sequence(std::move(parts));
}

}  // namespace mixtral::constrain
