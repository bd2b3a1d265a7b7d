#include "constrain/shorthand.h"

#include <array>

#include "text/unicode.h"

namespace mixtral::constrain {
namespace {

template <class Predicate>
CharSet all_that(Predicate holds) {
  std::vector<CharRange> ranges;
  for (int32_t code = 0; code <= 0x10FFFF; ++code) {
    if (!holds(code)) continue;
    if (!ranges.empty() && ranges.back().last == code - 1)
      ranges.back().last = code;
    else
      ranges.push_back({code, code});
  }
  return CharSet(std::move(ranges));
}

struct Property {
  std::string_view name, long_name;
  bool (*holds)(int32_t);
};
constexpr std::array<Property, 8> kProperties = {{{"L", "Letter", is_letter},
                                                  {"Lu", "Uppercase_Letter", is_upper},
                                                  {"Ll", "Lowercase_Letter", is_lower},
                                                  {"Lt", "Titlecase_Letter", is_title},
                                                  {"M", "Mark", is_mark},
                                                  {"N", "Number", is_numeric},
                                                  {"Nd", "Decimal_Number", is_decimal},
                                                  {"P", "Punctuation", is_punctuation}}};

// Each is found once, when it is asked for: that looks at all characters.
const Shorthand& digit() {
  static const Shorthand known{CharSet({{'0', '9'}}), all_that(is_decimal)};
  return known;
}

const Shorthand& word() {
  static const Shorthand known{
      CharSet({{'0', '9'}, {'A', 'Z'}, {'a', 'z'}, {'_', '_'}}), all_that([](int32_t code) {
        return is_word_character(code) || is_numeric(code) || is_letter(code);
      })};
  return known;
}

const Shorthand& space() {
  static const Shorthand known{
      CharSet({{'\t', '\r'}, {' ', ' '}}),
      all_that(is_white_space) | CharSet({{0x1C, 0x1F}, {0xFEFF, 0xFEFF}})};
  return known;
}

}  // namespace

std::optional<Shorthand> shorthand(char letter) {
  switch (letter) {
    case 'd':
      return digit();
    case 'D':
      return digit().complement();
    case 'w':
      return word();
    case 'W':
      return word().complement();
    case 's':
      return space();
    case 'S':
      return space().complement();
    default:
      return {};
  }
}

std::optional<CharSet> unicode_property(std::string_view name) {
  for (const Property& property : kProperties)
    if (name == property.name || name == property.long_name) return all_that(property.holds);
  return {};
}

}  // namespace mixtral::constrain
