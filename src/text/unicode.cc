#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "text/utf8.h"

namespace mixtral {
namespace {

utf8proc_category_t category(int32_t code) {
  return code < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(code);
}

bool is_between(utf8proc_category_t value, utf8proc_category_t low, utf8proc_category_t high) {
  return value >= low && value <= high;
}

/// A character whose upper or title case is several characters (SpecialCasing.txt of Unicode 15,
/// the mappings without a condition).
struct SpecialCase {
  int32_t code;
  std::string_view upper, title;
};

constexpr std::array kSpecialCases = std::to_array<SpecialCase>({
    {0x00DF, "SS", "Ss"},
    {0x0149, "\u02BCN", "\u02BCN"},
    {0x01F0, "J\u030C", "J\u030C"},
    {0x0390, "\u0399\u0308\u0301", "\u0399\u0308\u0301"},
    {0x03B0, "\u03A5\u0308\u0301", "\u03A5\u0308\u0301"},
    {0x0587, "\u0535\u0552", "\u0535\u0582"},
    {0x1E96, "H\u0331", "H\u0331"},
    {0x1E97, "T\u0308", "T\u0308"},
    {0x1E98, "W\u030A", "W\u030A"},
    {0x1E99, "Y\u030A", "Y\u030A"},
    {0x1E9A, "A\u02BE", "A\u02BE"},
    {0xFB00, "FF", "Ff"},
    {0xFB01, "FI", "Fi"},
    {0xFB02, "FL", "Fl"},
    {0xFB03, "FFI", "Ffi"},
    {0xFB04, "FFL", "Ffl"},
    {0xFB05, "ST", "St"},
    {0xFB06, "ST", "St"},
});

const SpecialCase* special_case(int32_t code) {
  const auto* found = std::ranges::find(kSpecialCases, code, &SpecialCase::code);
  return found == kSpecialCases.end() ? nullptr : found;
}

/// Whether a letter of case stands at the end of `text`, past characters that case ignores.
bool ends_cased(std::string_view text) {
  while (!text.empty()) {
    const Character c = last_character(text);
    if (is_cased(c.code)) return true;
    if (!is_mark(c.code) && c.code != '\'' && c.code != 0x2019) return false;
    text.remove_suffix(c.length);
  }
  return false;
}

bool begins_cased(std::string_view text) {
  while (!text.empty()) {
    const Character c = first_character(text);
    if (is_cased(c.code)) return true;
    if (!is_mark(c.code) && c.code != '\'' && c.code != 0x2019) return false;
    text.remove_prefix(c.length);
  }
  return false;
}

std::string normalize_valid(std::string_view text, NormalizationForm form) {
  int options = UTF8PROC_STABLE;
  if (form == NormalizationForm::nfc || form == NormalizationForm::nfkc)
    options |= UTF8PROC_COMPOSE;
  else
    options |= UTF8PROC_DECOMPOSE;
  if (form == NormalizationForm::nfkc || form == NormalizationForm::nfkd)
    options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* made = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &made,
                                             static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(made, &std::free);
  if (size < 0) return std::string(text);  // only a text of gigabytes is refused
  return {reinterpret_cast<const char*>(made), static_cast<size_t>(size)};
}

}  // namespace

Character first_character(std::string_view text) {
  const auto byte = static_cast<unsigned char>(text[0]);
  if (byte < 0x80) return {byte, 1};
  const size_t length = utf8_length(text);
  if (length == 0) return {-1, 1};
  int32_t code = byte & (0x7F >> length);
  for (size_t i = 1; i < length; ++i)
    code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  return {code, length};
}

Character last_character(std::string_view text) {
  for (size_t length = 1; length <= 4 && length <= text.size(); ++length) {
    const std::string_view tail = text.substr(text.size() - length);
    if (utf8_length(tail) == length) return first_character(tail);
  }
  return {-1, 1};
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (; !text.empty(); ++count) text.remove_prefix(first_character(text).length);
  return count;
}

void append_utf8(int32_t code, std::string& text) {
  std::array<utf8proc_uint8_t, 4> bytes{};
  const auto length = utf8proc_encode_char(code, bytes.data());
  text.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(length));
}

bool is_letter(int32_t code) {
  return is_between(category(code), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO);
}
bool is_numeric(int32_t code) {
  return is_between(category(code), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}
bool is_decimal(int32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }
bool is_mark(int32_t code) {
  return is_between(category(code), UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME);
}
bool is_punctuation(int32_t code) {
  return is_between(category(code), UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO);
}
bool is_upper(int32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }
bool is_lower(int32_t code) { return category(code) == UTF8PROC_CATEGORY_LL; }
bool is_title(int32_t code) { return category(code) == UTF8PROC_CATEGORY_LT; }
bool is_cased(int32_t code) {
  return is_between(category(code), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LT);
}

bool is_white_space(int32_t code) {
  return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word_character(int32_t code) {
  if (code >= 0 && code < 0x80)
    return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || code == '_' ||
           (code >= 'a' && code <= 'z');
  const utf8proc_category_t kind = category(code);
  return is_letter(code) || is_mark(code) || kind == UTF8PROC_CATEGORY_ND ||
         kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_PC ||
         // Other_Alphabetic among the symbols: letters in circles and squares.
         (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) ||
         code == 0x200C || code == 0x200D;
}

bool is_printable(int32_t code) {
  if (code == ' ') return true;
  const utf8proc_category_t kind = category(code);
  return !is_between(kind, UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_CO) &&
         kind != UTF8PROC_CATEGORY_CN;
}

std::string normalize_unicode(std::string_view text, NormalizationForm form) {
  std::string result;
  while (!text.empty()) {
    size_t valid = 0;
    while (valid < text.size()) {
      const size_t length = utf8_length(text.substr(valid));
      if (length == 0) break;
      valid += length;
    }
    if (valid > 0) result += normalize_valid(text.substr(0, valid), form);
    if (valid < text.size()) result += text[valid++];
    text.remove_prefix(valid);
  }
  return result;
}

std::string to_upper(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Character c = first_character(text);
    if (const SpecialCase* special = special_case(c.code); special != nullptr)
      result += special->upper;
    else if (c.code < 0)
      result += text[0];
    else
      append_utf8(utf8proc_toupper(c.code), result);
    text.remove_prefix(c.length);
  }
  return result;
}

std::string to_title(std::string_view character) {
  std::string result;
  if (character.empty()) return result;
  const Character c = first_character(character);
  if (const SpecialCase* special = special_case(c.code); special != nullptr)
    result += special->title;
  else if (c.code < 0)
    result += character[0];
  else
    append_utf8(utf8proc_totitle(c.code), result);
  return result;
}

std::string to_lower(std::string_view text, FinalSigma final_sigma) {
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character c = first_character(text.substr(at));
    if (c.code == 0x0130)
      result += "i\u0307";
    else if (c.code == 0x03A3 && final_sigma == FinalSigma::yes && ends_cased(text.substr(0, at)) &&
             !begins_cased(text.substr(at + c.length)))
      result += "\u03C2";
    else if (c.code < 0)
      result += text[at];
    else
      append_utf8(utf8proc_tolower(c.code), result);
    at += c.length;
  }
  return result;
}

std::string fold_case(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Character c = first_character(text);
    std::array<utf8proc_int32_t, 4> folded{};
    const auto count = c.code < 0
                           ? 0
                           : utf8proc_decompose_char(c.code, folded.data(), std::ssize(folded),
                                                     UTF8PROC_CASEFOLD, nullptr);
    if (c.code < 0) result += text[0];
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      append_utf8(folded[static_cast<size_t>(i)], result);
    text.remove_prefix(c.length);
  }
  return result;
}

}  // namespace mixtral
