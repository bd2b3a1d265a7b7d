// The methods of Python's text, lists and dictionaries that change nothing.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

using Method = Value (*)(Interpreter&, const Value&, Arguments&);

bool is_space(int32_t code) { return is_white_space(code) || (code >= 0x1C && code <= 0x1F); }

std::optional<std::string> text_unless_none(const std::optional<Value>& value) {
  if (!value || value->is(Value::Kind::none)) return std::nullopt;
  return plain_text(*value);
}

size_t limit_of(const std::optional<Value>& value) {
  if (!value) return SIZE_MAX;
  const Integer limit = whole_number(*value);
  return limit < 0 ? SIZE_MAX : static_cast<size_t>(std::min<Integer>(limit, INT64_MAX));
}

std::vector<int32_t> codes(std::string_view text) {
  std::vector<int32_t> result;
  for (; !text.empty(); text.remove_prefix(first_character(text).length))
    result.push_back(first_character(text).code);
  return result;
}

std::string_view stripped(std::string_view text, const std::optional<std::string>& characters,
                          bool left, bool right) {
  const std::vector<int32_t> set = characters ? codes(*characters) : std::vector<int32_t>{};
  const auto goes = [&](int32_t code) {
    return characters ? std::ranges::find(set, code) != set.end() : is_space(code);
  };
  while (left && !text.empty() && goes(first_character(text).code))
    text.remove_prefix(first_character(text).length);
  while (right && !text.empty() && goes(last_character(text).code))
    text.remove_suffix(last_character(text).length);
  return text;
}

Value strip(Interpreter& run, const Value& self, Arguments& given) {
  return run.text(std::string(
      stripped(self.text(), text_unless_none(bind(given, {"chars"}, "strip")[0]), true, true)));
}
Value lstrip(Interpreter& run, const Value& self, Arguments& given) {
  return run.text(std::string(
      stripped(self.text(), text_unless_none(bind(given, {"chars"}, "lstrip")[0]), true, false)));
}
Value rstrip(Interpreter& run, const Value& self, Arguments& given) {
  return run.text(std::string(
      stripped(self.text(), text_unless_none(bind(given, {"chars"}, "rstrip")[0]), false, true)));
}

Value texts(Interpreter& run, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(run.text(std::string(part)));
  return run.list(std::move(items));
}

std::vector<std::string_view> split_spaces(std::string_view text, size_t limit) {
  std::vector<std::string_view> parts;
  text = stripped(text, std::nullopt, true, false);
  while (!text.empty() && parts.size() < limit) {
    size_t end = 0;
    while (end < text.size() && !is_space(first_character(text.substr(end)).code))
      end += first_character(text.substr(end)).length;
    parts.push_back(text.substr(0, end));
    text = stripped(text.substr(end), std::nullopt, true, false);
  }
  if (!text.empty()) parts.push_back(stripped(text, std::nullopt, false, parts.size() < limit));
  return parts;
}

std::vector<std::string_view> split_spaces_from_right(std::string_view text, size_t limit) {
  std::vector<std::string_view> parts;
  text = stripped(text, std::nullopt, false, true);
  while (!text.empty() && parts.size() < limit) {
    size_t begin = text.size();
    while (begin > 0 && !is_space(last_character(text.substr(0, begin)).code))
      begin -= last_character(text.substr(0, begin)).length;
    parts.push_back(text.substr(begin));
    text = stripped(text.substr(0, begin), std::nullopt, false, true);
  }
  if (!text.empty()) parts.push_back(text);
  std::ranges::reverse(parts);
  return parts;
}

Value split(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"sep", "maxsplit"}, "split");
  const auto separator = text_unless_none(a[0]);
  const size_t limit = limit_of(a[1]);
  if (!separator) return texts(run, split_spaces(self.text(), limit));
  if (separator->empty()) throw RenderError("empty separator");
  std::vector<std::string_view> parts;
  std::string_view rest = self.text();
  for (size_t at = 0; parts.size() < limit && (at = rest.find(*separator)) != std::string::npos;) {
    parts.push_back(rest.substr(0, at));
    rest.remove_prefix(at + separator->size());
  }
  parts.push_back(rest);
  return texts(run, parts);
}

Value rsplit(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"sep", "maxsplit"}, "rsplit");
  const auto separator = text_unless_none(a[0]);
  const size_t limit = limit_of(a[1]);
  if (!separator) return texts(run, split_spaces_from_right(self.text(), limit));
  if (separator->empty()) throw RenderError("empty separator");
  std::vector<std::string_view> parts;
  std::string_view rest = self.text();
  for (size_t at = 0; parts.size() < limit && (at = rest.rfind(*separator)) != std::string::npos;) {
    parts.push_back(rest.substr(at + separator->size()));
    rest = rest.substr(0, at);
  }
  parts.push_back(rest);
  std::ranges::reverse(parts);
  return texts(run, parts);
}

Value splitlines(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"keepends"}, "splitlines");
  const bool keep = a[0] && truth(*a[0]);
  std::vector<std::string_view> lines;
  const std::string_view text = self.text();
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Character c = first_character(text.substr(at));
    const bool ends = (c.code >= 10 && c.code <= 13) || (c.code >= 0x1C && c.code <= 0x1E) ||
                      c.code == 0x85 || c.code == 0x2028 || c.code == 0x2029;
    size_t after = at + c.length;
    if (ends) {
      if (c.code == '\r' && after < text.size() && text[after] == '\n') ++after;
      lines.push_back(text.substr(begin, (keep ? after : at) - begin));
      begin = after;
    }
    at = after;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return texts(run, lines);
}

/// Whether the text begins (ends) with a text or one of a tuple of them.
bool affixed(const Value& self, const Arguments& given, bool at_start) {
  const auto a = bind(given, {"prefix"}, at_start ? "startswith" : "endswith");
  if (!a[0]) throw RenderError("an argument is missing");
  const auto holds = [&](const Value& affix) {
    return at_start ? self.text().starts_with(plain_text(affix))
                    : self.text().ends_with(plain_text(affix));
  };
  if (!a[0]->is(Value::Kind::tuple)) return holds(*a[0]);
  return std::ranges::any_of(a[0]->items().items, holds);
}

Value startswith(Interpreter&, const Value& self, Arguments& given) {
  return Value::of(affixed(self, given, true));
}
Value endswith(Interpreter&, const Value& self, Arguments& given) {
  return Value::of(affixed(self, given, false));
}

Value upper(Interpreter& run, const Value& self, Arguments&) {
  return run.text(to_upper(self.text()));
}
Value lower(Interpreter& run, const Value& self, Arguments&) {
  return run.text(to_lower(self.text(), FinalSigma::yes));
}
Value casefold(Interpreter& run, const Value& self, Arguments&) {
  return run.text(fold_case(self.text()));
}

Value capitalize(Interpreter& run, const Value& self, Arguments&) {
  if (self.text().empty()) return self;
  const size_t size = first_character(self.text()).length;
  // Lowered as a whole, so that what ends a word is known.
  const std::string rest = to_lower(self.text(), FinalSigma::yes);
  return run.text(to_title(self.text().substr(0, size)) +
                  rest.substr(std::min(rest.size(), to_lower(self.text().substr(0, size)).size())));
}

Value title(Interpreter& run, const Value& self, Arguments&) {
  std::string result;
  bool after_letter = false;
  for (std::string_view rest = self.text(); !rest.empty();) {
    const Character c = first_character(rest);
    const std::string_view character = rest.substr(0, c.length);
    result += after_letter ? to_lower(character) : to_title(character);
    after_letter = is_cased(c.code);
    rest.remove_prefix(c.length);
  }
  return run.text(std::move(result));
}

Value swapcase(Interpreter& run, const Value& self, Arguments&) {
  std::string result;
  for (std::string_view rest = self.text(); !rest.empty();) {
    const Character c = first_character(rest);
    const std::string_view character = rest.substr(0, c.length);
    result += is_upper(c.code) ? to_lower(character) : to_upper(character);
    rest.remove_prefix(c.length);
  }
  return run.text(std::move(result));
}

Value replace(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"old", "new", "count"}, "replace");
  if (!a[0] || !a[1]) throw RenderError("replace needs two texts");
  const std::string &old = plain_text(*a[0]), &by = plain_text(*a[1]);
  size_t limit = limit_of(a[2]);
  std::string result;
  std::string_view rest = self.text();
  const auto add = [&](std::string_view part) {
    if (result.size() + part.size() > result.capacity()) run.reserve(result.size() + part.size());
    result += part;
  };
  while (limit-- > 0) {
    if (old.empty()) {  // between all characters
      add(by);
      if (rest.empty()) break;
      const size_t size = first_character(rest).length;
      add(rest.substr(0, size));
      rest.remove_prefix(size);
      continue;
    }
    const size_t at = rest.find(old);
    if (at == std::string_view::npos) break;
    add(rest.substr(0, at));
    add(by);
    rest.remove_prefix(at + old.size());
  }
  add(rest);
  return run.text(std::move(result));
}

/// Where the text holds another one, in characters; -1 where it does not.
Integer place_of(const Value& self, const Arguments& given, bool from_right) {
  const auto a = bind(given, {"sub", "start", "end"}, "find");
  if (!a[0]) throw RenderError("an argument is missing");
  if (a[2]) throw RenderError("an end for the search is not supported");
  const std::string& part = plain_text(*a[0]);
  std::string_view text = self.text();
  Integer skipped = 0;
  if (a[1]) {
    const auto size = static_cast<Integer>(count_characters(text));
    const Integer start = whole_number(*a[1]);
    skipped = std::clamp<Integer>(start < 0 ? start + size : start, 0, size);
    for (Integer i = 0; i < skipped; ++i) text.remove_prefix(first_character(text).length);
  }
  const size_t at = from_right ? text.rfind(part) : text.find(part);
  if (at == std::string_view::npos) return -1;
  return skipped + static_cast<Integer>(count_characters(text.substr(0, at)));
}

Value find(Interpreter&, const Value& self, Arguments& given) {
  return Value::of(place_of(self, given, false));
}
Value rfind(Interpreter&, const Value& self, Arguments& given) {
  return Value::of(place_of(self, given, true));
}
Value index(Interpreter&, const Value& self, Arguments& given) {
  const Integer place = place_of(self, given, false);
  if (place < 0) throw RenderError("substring not found");
  return Value::of(place);
}
Value rindex(Interpreter&, const Value& self, Arguments& given) {
  const Integer place = place_of(self, given, true);
  if (place < 0) throw RenderError("substring not found");
  return Value::of(place);
}

Value count(Interpreter&, const Value& self, Arguments& given) {
  const auto a = bind(given, {"sub"}, "count");
  if (!a[0]) throw RenderError("an argument is missing");
  const std::string& part = plain_text(*a[0]);
  if (part.empty()) return Value::of(count_characters(self.text()) + 1);
  size_t found = 0;
  for (size_t at = 0; (at = self.text().find(part, at)) != std::string::npos; at += part.size())
    ++found;
  return Value::of(found);
}

Value divided(Interpreter& run, const Value& self, const Arguments& given, bool from_right) {
  const auto a = bind(given, {"sep"}, "partition");
  if (!a[0] || plain_text(*a[0]).empty()) throw RenderError("empty separator");
  const std::string &text = self.text(), &separator = a[0]->text();
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  run.reserve(text.size());
  if (at == std::string::npos) {
    return from_right ? Value::tuple({Value::of(""), Value::of(""), self})
                      : Value::tuple({self, Value::of(""), Value::of("")});
  }
  return Value::tuple(
      {Value::of(text.substr(0, at)), *a[0], Value::of(text.substr(at + separator.size()))});
}

Value partition(Interpreter& run, const Value& self, Arguments& given) {
  return divided(run, self, given, false);
}
Value rpartition(Interpreter& run, const Value& self, Arguments& given) {
  return divided(run, self, given, true);
}

template <bool (*Holds)(int32_t)>
Value all_are(Interpreter&, const Value& self, Arguments&) {
  return Value::of(!self.text().empty() && std::ranges::all_of(codes(self.text()), Holds));
}

bool is_digit(int32_t code) {
  return is_decimal(code) || code == 0xB2 || code == 0xB3 || code == 0xB9 ||
         (code >= 0x2070 && code <= 0x2079) || (code >= 0x2080 && code <= 0x2089);
}
bool is_alphanumeric(int32_t code) { return is_letter(code) || is_numeric(code); }

Value isascii(Interpreter&, const Value& self, Arguments&) {
  return Value::of(
      std::ranges::all_of(codes(self.text()), [](int32_t c) { return c >= 0 && c < 128; }));
}

template <bool (*Is)(int32_t), bool (*Other)(int32_t)>
Value case_is(Interpreter&, const Value& self, Arguments&) {
  const auto all = codes(self.text());
  return Value::of(std::ranges::any_of(all, Is) && std::ranges::none_of(all, [](int32_t code) {
                     return Other(code) || is_title(code);
                   }));
}

/// Filled up to a width in characters, with the text at the left, in the middle or at the right.
enum class Place { left, middle, right };
Value filled(Interpreter& run, const Value& self, const Arguments& given, Place place) {
  const auto a = bind(given, {"width", "fillchar"}, "center");
  if (!a[0]) throw RenderError("a width is missing");
  const std::string fill = a[1] ? plain_text(*a[1]) : " ";
  if (count_characters(fill) != 1)
    throw RenderError("The fill character must be exactly one character long");
  const auto size = static_cast<Integer>(count_characters(self.text()));
  const Integer width = whole_number(*a[0]), missing = width - size;
  if (missing <= 0) return self;
  if (missing > (1 << 24)) throw RenderError("the template makes too long a text");
  // Where it cannot be even, Python puts more to the left of an odd width.
  const Integer before = place == Place::left    ? 0
                         : place == Place::right ? missing
                                                 : missing / 2 + (missing & width & 1);
  run.reserve(static_cast<size_t>(missing) * fill.size());
  std::string result;
  for (Integer i = 0; i < before; ++i) result += fill;
  result += self.text();
  for (Integer i = before; i < missing; ++i) result += fill;
  return run.text(std::move(result));
}

Value ljust(Interpreter& run, const Value& self, Arguments& given) {
  return filled(run, self, given, Place::left);
}
Value rjust(Interpreter& run, const Value& self, Arguments& given) {
  return filled(run, self, given, Place::right);
}
Value center(Interpreter& run, const Value& self, Arguments& given) {
  return filled(run, self, given, Place::middle);
}

Value zfill(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"width"}, "zfill");
  if (!a[0]) throw RenderError("a width is missing");
  const bool sign = self.text().starts_with('-') || self.text().starts_with('+');
  const Arguments rest{{Value::of(whole_number(*a[0]) - (sign ? 1 : 0)), Value::of("0")}, {}};
  const Value digits = filled(run, Value::of(self.text().substr(sign ? 1 : 0)), rest, Place::right);
  return run.text(self.text().substr(0, sign ? 1 : 0) + digits.text());
}

Value join(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"iterable"}, "join");
  if (!a[0]) throw RenderError("join needs a list");
  std::string text;
  bool begun = false;
  for (const Value& item : iterate(*a[0])) {
    if (begun) text += self.text();
    begun = true;
    text += plain_text(item);
    run.reserve(text.size() / 64);
  }
  return run.text(std::move(text));
}

Value format(Interpreter& run, const Value& self, Arguments& given) {
  return run.text(brace_format(self.text(), given));
}

Value removeprefix(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"prefix"}, "removeprefix");
  if (!a[0]) throw RenderError("an argument is missing");
  const bool has = self.text().starts_with(plain_text(*a[0]));
  return has ? run.text(self.text().substr(a[0]->text().size())) : self;
}
Value removesuffix(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"suffix"}, "removesuffix");
  if (!a[0]) throw RenderError("an argument is missing");
  const bool has = self.text().ends_with(plain_text(*a[0]));
  return has ? run.text(self.text().substr(0, self.text().size() - a[0]->text().size())) : self;
}

Value list_count(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"value"}, "count");
  if (!a[0]) throw RenderError("an argument is missing");
  run.spend(self.items().items.size());
  return Value::of(static_cast<size_t>(std::ranges::count_if(
      self.items().items, [&](const Value& item) { return equal(item, *a[0]); })));
}

Value list_index(Interpreter& run, const Value& self, Arguments& given) {
  const auto a = bind(given, {"value"}, "index");
  if (!a[0]) throw RenderError("an argument is missing");
  const auto& items = self.items().items;
  run.spend(items.size());
  for (size_t i = 0; i < items.size(); ++i)
    if (equal(items[i], *a[0])) return Value::of(i);
  throw RenderError("the value is not in the list");
}

Value list_copy(Interpreter& run, const Value& self, Arguments&) {
  return run.list(self.items().items);
}

Value get(Interpreter&, const Value& self, Arguments& given) {
  const auto a = bind(given, {"key", "default"}, "get");
  if (!a[0]) throw RenderError("get needs a key");
  if (const Value* found = self.find(*a[0])) return *found;
  return a[1].value_or(Value::none());
}

Value dict_items(Interpreter&, const Value& self, Arguments&) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.members().items) pairs.push_back(Value::tuple({key, value}));
  return Value::list(std::move(pairs), Value::Kind::view, "dict_items");
}
Value dict_keys(Interpreter&, const Value& self, Arguments&) {
  return Value::list(iterate(self), Value::Kind::view, "dict_keys");
}
Value dict_values(Interpreter&, const Value& self, Arguments&) {
  std::vector<Value> values;
  for (const auto& item : self.members().items) values.push_back(item.second);
  return Value::list(std::move(values), Value::Kind::view, "dict_values");
}
Value dict_copy(Interpreter& run, const Value& self, Arguments&) {
  Value copy = Value::dict();
  for (const auto& [key, value] : self.members().items) copy.set(key, value);
  run.reserve(self.members().items.size() * sizeof(Value));
  return copy;
}

struct Named {
  std::string_view name;
  Method method;
};

constexpr Named kTextMethods[] = {
    {"strip", strip},
    {"lstrip", lstrip},
    {"rstrip", rstrip},
    {"split", split},
    {"rsplit", rsplit},
    {"splitlines", splitlines},
    {"startswith", startswith},
    {"endswith", endswith},
    {"upper", upper},
    {"lower", lower},
    {"casefold", casefold},
    {"capitalize", capitalize},
    {"title", title},
    {"swapcase", swapcase},
    {"replace", replace},
    {"find", find},
    {"rfind", rfind},
    {"index", index},
    {"rindex", rindex},
    {"count", count},
    {"partition", partition},
    {"rpartition", rpartition},
    {"isdigit", all_are<is_digit>},
    {"isdecimal", all_are<is_decimal>},
    {"isnumeric", all_are<is_numeric>},
    {"isalpha", all_are<is_letter>},
    {"isalnum", all_are<is_alphanumeric>},
    {"isspace", all_are<is_space>},
    {"isascii", isascii},
    {"isupper", case_is<is_upper, is_lower>},
    {"islower", case_is<is_lower, is_upper>},
    {"ljust", ljust},
    {"rjust", rjust},
    {"center", center},
    {"zfill", zfill},
    {"join", join},
    {"format", format},
    {"removeprefix", removeprefix},
    {"removesuffix", removesuffix},
};

constexpr Named kListMethods[] = {
    {"count", list_count}, {"index", list_index}, {"copy", list_copy}};

constexpr Named kDictMethods[] = {{"get", get},
                                  {"items", dict_items},
                                  {"keys", dict_keys},
                                  {"values", dict_values},
                                  {"copy", dict_copy}};

Value found_in(std::span<const Named> methods, const Value& self, const std::string& name) {
  const auto found = std::ranges::find(methods, name, &Named::name);
  if (found == methods.end()) return {};
  const Method method = found->method;
  return Value::function(name, [self, method](Interpreter& run, Arguments& given) {
    run.spend(steps_through(self));
    if (self.is(Value::Kind::string)) {
      const auto count = [&](const Value& part) {
        if (part.is(Value::Kind::string)) run.spend(steps_to_find(part.text(), self.text()));
      };
      for (const Value& part : given.positional) count(part);
      for (const auto& [_, part] : given.named) count(part);
    }
    return method(run, self, given);
  });
}

}  // namespace

Value find_method(const Value& value, const std::string& name) {
  switch (value.kind()) {
    case Value::Kind::string: {
      constexpr std::string_view others[] = {"encode",       "expandtabs", "format_map",
                                             "isidentifier", "maketrans",  "isprintable",
                                             "istitle",      "translate"};
      if (std::ranges::find(others, name) == std::end(others))
        return found_in(kTextMethods, value, name);
      return Value::function(name, [name](Interpreter&, Arguments&) -> Value {
        throw RenderError(fmt::format("the method {}() of text is not supported", name));
      });
    }
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
      return found_in(kListMethods, value, name);
    case Value::Kind::dict:
      return found_in(kDictMethods, value, name);
    default:
      return {};
  }
}

}  // namespace mixtral::jinja
