// Python's "%s" % values and "{}".format(values).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_interpreter.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

constexpr int64_t kWidest = 100000;

/// How one value is laid out: the mini-language that both kinds of formats share.
struct Layout {
  std::string fill = " ";
  char align = '\0';  // <, >, ^ or =
  char sign = '-';
  bool alternate = false, commas = false;
  int64_t width = 0, precision = -1;
  char type = '\0';
};

std::string padded(const std::string& text, const Layout& layout, char align) {
  const auto size = static_cast<int64_t>(count_characters(text));
  const int64_t missing = std::max<int64_t>(layout.width - size, 0);
  const int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  std::string result;
  const bool inside =
      align == '=' && !text.empty() && (text[0] == '-' || text[0] == '+' || text[0] == ' ');
  if (inside) result += text[0];
  for (int64_t i = 0; i < before; ++i) result += layout.fill;
  result += inside ? text.substr(1) : text;
  for (int64_t i = before; i < missing; ++i) result += layout.fill;
  return result;
}

std::string with_commas(std::string digits) {
  const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (size_t place = end; place > 3;) {
    place -= 3;
    digits.insert(place, 1, ',');
  }
  return digits;
}

std::string in_base(Integer value, unsigned base, bool capital) {
  if (value == 0) return "0";
  std::string digits;
  for (; value != 0; value /= base) {
    const auto digit = static_cast<size_t>(value % base);
    digits += (capital ? "0123456789ABCDEF" : "0123456789abcdef")[digit];
  }
  std::ranges::reverse(digits);
  return digits;
}

std::string real_text(double value, char type, int64_t precision) {
  const auto places = static_cast<int>(precision < 0 ? 6 : precision);
  switch (type) {
    case 'e':
      return fmt::format("{:.{}e}", value, places);
    case 'E':
      return fmt::format("{:.{}E}", value, places);
    case 'g':
      return fmt::format("{:.{}g}", value, std::max(places, 1));
    case 'G':
      return fmt::format("{:.{}G}", value, std::max(places, 1));
    case '%':
      return fmt::format("{:.{}f}%", value * 100, places);
    default:
      return fmt::format("{:.{}f}", value, places);
  }
}

std::string number_layout(const Value& value, const Layout& layout) {
  std::string text;
  bool negative = false;
  const std::string_view real_types = "eEfFgG%";
  if (real_types.find(layout.type) != std::string_view::npos && layout.type != '\0') {
    if (!value.is_number()) throw RenderError("a number is needed");
    negative = std::signbit(value.real());
    text = real_text(std::abs(value.real()), layout.type, layout.precision);
  } else {
    const Integer whole = value.is(Value::Kind::real)
                              ? static_cast<Integer>(std::clamp(value.real(), -1e37, 1e37))
                              : whole_number(value);
    negative = whole < 0;
    const Integer size = negative ? -whole : whole;
    const unsigned base = layout.type == 'x' || layout.type == 'X' ? 16
                          : layout.type == 'o'                     ? 8
                          : layout.type == 'b'                     ? 2
                                                                   : 10;
    text = base == 10 ? number_text(size) : in_base(size, base, layout.type == 'X');
    while (static_cast<int64_t>(text.size()) < layout.precision) text.insert(text.begin(), '0');
    if (layout.alternate && base != 10) text.insert(0, std::string("0") + layout.type);
  }
  if (layout.commas) text = with_commas(text);
  if (negative)
    text.insert(text.begin(), '-');
  else if (layout.sign != '-')
    text.insert(text.begin(), layout.sign);
  return text;
}

int64_t read_number(std::string_view text, size_t& at) {
  int64_t value = -1;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = std::max<int64_t>(value, 0) * 10 + (text[at++] - '0');
    if (value > kWidest) throw RenderError("the width of a format is too large");
  }
  return value;
}

std::string cut(const std::string& text, int64_t precision) {
  if (precision < 0) return text;
  std::string_view rest = text;
  for (int64_t i = 0; i < precision && !rest.empty(); ++i)
    rest.remove_prefix(first_character(rest).length);
  return text.substr(0, text.size() - rest.size());
}

/// Of "{:>4}": what stands behind the colon.
std::string laid_out(const Value& value, std::string_view spec) {
  Layout layout;
  size_t at = 0;
  const std::string_view aligns = "<>^=";
  if (!spec.empty()) {
    const size_t first = first_character(spec).length;
    if (spec.size() > first && aligns.find(spec[first]) != std::string_view::npos) {
      layout.fill = spec.substr(0, first);
      layout.align = spec[first];
      at = first + 1;
    } else if (aligns.find(spec[0]) != std::string_view::npos) {
      layout.align = spec[at++];
    }
  }
  const auto take = [&](std::string_view allowed) {
    return at < spec.size() && allowed.find(spec[at]) != std::string_view::npos ? spec[at++] : '\0';
  };
  if (const char sign = take("+- ")) layout.sign = sign;
  layout.alternate = take("#") != '\0';
  if (take("0") != '\0') {
    layout.fill = "0";
    if (layout.align == '\0') layout.align = '=';
  }
  layout.width = std::max<int64_t>(read_number(spec, at), 0);
  layout.commas = take(",") != '\0';
  if (take(".") != '\0') layout.precision = read_number(spec, at);
  layout.type = take("sdxXobeEfFgG%");
  if (at != spec.size())
    throw RenderError(fmt::format("the format '{}' is not supported", printable(spec)));
  const bool number = value.is_number() && layout.type != 's';
  const char align = layout.align != '\0' ? layout.align : number ? '>' : '<';
  if (!number) return padded(cut(to_text(value), layout.precision), layout, align);
  if (layout.type == '\0' && value.is(Value::Kind::boolean) && spec.empty()) return to_text(value);
  if (layout.type == '\0' && value.is(Value::Kind::real)) {
    if (layout.precision >= 0) {
      layout.type = 'g';
    } else {
      std::string text = number_text(value.real());
      return padded(layout.commas ? with_commas(text) : text, layout, align);
    }
  }
  return padded(number_layout(value, layout), layout, align);
}

}  // namespace

std::string percent_format(std::string_view format, const Value& values) {
  const bool single = !values.is(Value::Kind::tuple);
  size_t used = 0;
  bool named = false;
  std::string result;
  const auto next = [&]() -> Value {
    if (single) {
      if (used++ > 0) throw RenderError("not enough arguments for format string");
      return values;
    }
    if (used >= values.items().items.size())
      throw RenderError("not enough arguments for format string");
    return values.items().items[used++];
  };
  for (size_t at = 0; at < format.size();) {
    if (format[at] != '%') {
      result += format[at++];
      continue;
    }
    if (++at >= format.size()) throw RenderError("incomplete format");
    if (format[at] == '%') {
      result += '%';
      ++at;
      continue;
    }
    std::optional<Value> value;
    if (format[at] == '(') {
      const size_t end = format.find(')', at);
      if (end == std::string_view::npos) throw RenderError("incomplete format key");
      if (!values.is(Value::Kind::dict)) throw RenderError("format requires a mapping");
      const Value* found = values.find(Value::of(std::string(format.substr(at + 1, end - at - 1))));
      if (found == nullptr) throw RenderError("the format names a key that is not there");
      value = *found;
      named = true;
      at = end + 1;
    }
    Layout layout;
    bool left = false, zeros = false;
    for (; at < format.size(); ++at) {
      const char c = format[at];
      if (c == '-')
        left = true;
      else if (c == '0')
        zeros = true;
      else if (c == '+' || (c == ' ' && layout.sign == '-'))
        layout.sign = c;
      else if (c == '#')
        layout.alternate = true;
      else
        break;
    }
    const auto width = [&]() -> int64_t {
      if (at >= format.size() || format[at] != '*') return read_number(format, at);
      ++at;
      const Integer given = whole_number(next());
      if (given < 0 || given > kWidest) throw RenderError("the width of a format is out of range");
      return static_cast<int64_t>(given);
    };
    layout.width = std::max<int64_t>(width(), 0);
    if (at < format.size() && format[at] == '.') {
      ++at;
      layout.precision = std::max<int64_t>(width(), 0);
    }
    if (at >= format.size()) throw RenderError("incomplete format");
    const char type = format[at++];
    if (!value) value = next();
    if (type == 's' || type == 'r' || type == 'a') {
      const std::string text = type == 's' ? to_text(*value) : representation(*value);
      result += padded(cut(text, layout.precision), layout, left ? '<' : '>');
    } else if (type == 'c') {
      std::string text;
      if (value->is(Value::Kind::string)) {
        text = value->text();
        if (count_characters(text) != 1) throw RenderError("%c requires int or char");
      } else {
        const Integer code = whole_number(*value);
        if (code < 0 || code > 0x10FFFF) throw RenderError("%c arg not in range(0x110000)");
        append_utf8(static_cast<int32_t>(code), text);
      }
      result += padded(text, layout, left ? '<' : '>');
    } else if (std::string_view("diuxXoeEfFgG").find(type) != std::string_view::npos) {
      if (!value->is_number())
        throw RenderError(
            fmt::format("%{} format: a number is required, not {}", type, value->type_name()));
      layout.type = type == 'i' || type == 'u' ? 'd' : type;
      if (zeros && !left) layout.fill = "0";
      result += padded(number_layout(*value, layout), layout, left ? '<' : zeros ? '=' : '>');
    } else {
      throw RenderError(fmt::format("unsupported format character '{}'", printable({&type, 1})));
    }
    if (result.size() > (size_t{32} << 20)) throw RenderError("the template makes too long a text");
  }
  const bool all_used = single ? used > 0 || named || values.is(Value::Kind::dict)
                               : used == values.items().items.size();
  if (!all_used) throw RenderError("not all arguments converted during string formatting");
  return result;
}

std::string brace_format(std::string_view format, const Arguments& given) {
  std::string result;
  size_t automatic = 0;
  for (size_t at = 0; at < format.size(); ++at) {
    const char c = format[at];
    if ((c == '{' || c == '}') && at + 1 < format.size() && format[at + 1] == c) {
      result += c;
      ++at;
      continue;
    }
    if (c == '}') throw RenderError("Single '}' encountered in format string");
    if (c != '{') {
      result += c;
      continue;
    }
    const size_t end = format.find('}', at);
    if (end == std::string_view::npos) throw RenderError("expected '}' before end of string");
    std::string_view field = format.substr(at + 1, end - at - 1);
    std::string_view spec;
    if (const size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    bool as_representation = false;
    if (const size_t mark = field.find('!'); mark != std::string_view::npos) {
      const std::string_view kind = field.substr(mark + 1);
      if (kind != "r" && kind != "s") throw RenderError("expected !r or !s in a format");
      as_representation = kind == "r";
      field = field.substr(0, mark);
    }
    if (field.find_first_of(".[{") != std::string_view::npos || spec.find('{') != spec.npos)
      throw RenderError("attributes and nested fields in a format are not supported");
    const Value* value = nullptr;
    if (field.empty() || field.find_first_not_of("0123456789") == std::string_view::npos) {
      size_t digits = 0;
      const size_t place =
          field.empty() ? automatic++ : static_cast<size_t>(read_number(field, digits));
      if (place < given.positional.size()) value = &given.positional[place];
    } else {
      for (const auto& [name, named] : given.named)
        if (name == field) value = &named;
    }
    if (value == nullptr) throw RenderError("a format asks for a value that is not given");
    result += laid_out(as_representation ? Value::of(representation(*value)) : *value, spec);
    at = end;
    if (result.size() > (size_t{32} << 20)) throw RenderError("the template makes too long a text");
  }
  return result;
}

}  // namespace mixtral::jinja
