// Values as text: Python's str(), repr() and json.dumps().
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "text/jinja_value.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

std::string quoted_text(std::string_view text) {
  const bool doubled =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  std::string result(1, quote);
  while (!text.empty()) {
    const Character c = first_character(text);
    if (c.code == quote || c.code == '\\')
      result += fmt::format("\\{}", static_cast<char>(c.code));
    else if (c.code == '\n')
      result += "\\n";
    else if (c.code == '\r')
      result += "\\r";
    else if (c.code == '\t')
      result += "\\t";
    else if (c.code < 0)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[0]));
    else if (is_printable(c.code))
      result += text.substr(0, c.length);
    else if (c.code < 0x100)
      result += fmt::format("\\x{:02x}", c.code);
    else if (c.code < 0x10000)
      result += fmt::format("\\u{:04x}", c.code);
    else
      result += fmt::format("\\U{:08x}", c.code);
    text.remove_prefix(c.length);
  }
  result += quote;
  return result;
}

std::string joined(const std::vector<Value>& items, int depth) {
  std::string result;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) result += ", ";
    result += representation(items[i], depth + 1);
  }
  return result;
}

std::string members_text(const Value& value, int depth) {
  std::string result = "{";
  for (const auto& [key, item] : value.members().items) {
    if (result.size() > 1) result += ", ";
    result += representation(key, depth + 1) + ": " + representation(item, depth + 1);
  }
  return result + "}";
}

std::string json_text(std::string_view text, bool ensure_ascii) {
  std::string result = "\"";
  while (!text.empty()) {
    const Character c = first_character(text);
    constexpr std::string_view escaped = "\"\\\n\r\t\b\f", names = "\"\\nrtbf";
    if (const size_t place =
            c.code >= 0 && c.code < 0x80 ? escaped.find(static_cast<char>(c.code)) : escaped.npos;
        place != escaped.npos) {
      result += '\\';
      result += names[place];
    } else if (c.code >= 0 && c.code < 0x20) {
      result += fmt::format("\\u{:04x}", c.code);
    } else if (ensure_ascii && c.code >= 0x10000) {
      const int32_t rest = c.code - 0x10000;
      result += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
    } else if (ensure_ascii && c.code > 0x7E) {
      result += fmt::format("\\u{:04x}", c.code);
    } else {
      result += text.substr(0, c.length);
    }
    text.remove_prefix(c.length);
  }
  return result + "\"";
}

std::string json_key(const Value& key, bool ensure_ascii) {
  if (key.is(Value::Kind::string)) return json_text(key.text(), ensure_ascii);
  if (key.is_number() || key.is(Value::Kind::none))
    return "\"" + to_json(key, {.ensure_ascii = ensure_ascii}) + "\"";
  throw RenderError(
      fmt::format("keys must be str, int, float, bool or None, not {}", key.type_name()));
}

}  // namespace

std::string number_text(Integer value) {
  if (value == 0) return "0";
  const bool negative = value < 0;
  std::string digits;
  for (; value != 0; value /= 10) {
    const auto digit = static_cast<int>(value % 10);
    digits += static_cast<char>('0' + (digit < 0 ? -digit : digit));
  }
  if (negative) digits += '-';
  std::ranges::reverse(digits);
  return digits;
}

/// The shortest digits that give the number back, as Python's repr() lays them out.
std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer{};
  const auto [end, code] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                         std::chars_format::scientific);
  const std::string_view all(buffer.data(), static_cast<size_t>(end - buffer.data()));
  const size_t e = all.find('e');
  const int exponent = std::stoi(std::string(all.substr(e + 1)));
  std::string digits;
  for (const char c : all.substr(0, e))
    if (c >= '0' && c <= '9') digits += c;
  const std::string sign = std::signbit(value) ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return fmt::format("{}0.{}{}", sign, std::string(static_cast<size_t>(-exponent - 1), '0'),
                       digits);
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) digits.resize(whole + 1, '0');
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string to_text(const Value& value) {
  if (value.is(Value::Kind::undefined)) return {};
  if (!value.is(Value::Kind::string)) return representation(value);
  Meter::spend_here(value.text().size() / 4096);
  return value.text();
}

std::string representation(const Value& value, int depth) {
  limit_depth(depth);
  Meter::spend_here(1 + steps_through(value));
  switch (value.kind()) {
    case Value::Kind::undefined:
      return "Undefined";
    case Value::Kind::none:
      return "None";
    case Value::Kind::boolean:
      return truth(value) ? "True" : "False";
    case Value::Kind::integer:
      return number_text(value.integer());
    case Value::Kind::real:
      return number_text(value.real());
    case Value::Kind::string:
      return quoted_text(value.text());
    case Value::Kind::list:
      return "[" + joined(value.items().items, depth) + "]";
    case Value::Kind::tuple:
      return "(" + joined(value.items().items, depth) +
             (value.items().items.size() == 1 ? ",)" : ")");
    case Value::Kind::range:
      return value.items().name;
    case Value::Kind::view:
      return value.items().name + "([" + joined(value.items().items, depth) + "])";
    case Value::Kind::dict:
      return members_text(value, depth);
    default:
      throw RenderError(fmt::format("a {} has no text of its own", value.type_name()));
  }
}

std::string to_json(const Value& value, const JsonStyle& style, int depth) {
  limit_depth(depth);
  Meter::spend_here(1 + steps_through(value));
  const auto line = [&](int level) {
    std::string result;
    if (!style.indent) return result;
    result += '\n';
    for (int i = 0; i < level; ++i) result += *style.indent;
    return result;
  };
  switch (value.kind()) {
    case Value::Kind::none:
      return "null";
    case Value::Kind::boolean:
      return truth(value) ? "true" : "false";
    case Value::Kind::integer:
      return number_text(value.integer());
    case Value::Kind::real:
      if (std::isnan(value.real())) return "NaN";
      if (std::isinf(value.real())) return value.real() < 0 ? "-Infinity" : "Infinity";
      return number_text(value.real());
    case Value::Kind::string:
      return json_text(value.text(), style.ensure_ascii);
    case Value::Kind::list:
    case Value::Kind::tuple: {
      std::string result;
      for (const Value& item : value.items().items) {
        if (!result.empty()) result += style.item_separator;
        result += line(depth + 1) + to_json(item, style, depth + 1);
      }
      return result.empty() ? "[]" : "[" + result + line(depth) + "]";
    }
    case Value::Kind::dict: {
      auto items = value.members().items;
      if (style.sort_keys) {
        std::ranges::stable_sort(
            items, [](const auto& a, const auto& b) { return compare(a.first, b.first) < 0; });
      }
      std::string result;
      for (const auto& [key, item] : items) {
        if (!result.empty()) result += style.item_separator;
        result += line(depth + 1) + json_key(key, style.ensure_ascii) + style.key_separator +
                  to_json(item, style, depth + 1);
      }
      return result.empty() ? "{}" : "{" + result + line(depth) + "}";
    }
    default:
      throw RenderError(
          fmt::format("Object of type {} is not JSON serializable", value.type_name()));
  }
}

}  // namespace mixtral::jinja
