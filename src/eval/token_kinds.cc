#include "eval/token_kinds.h"

#include <algorithm>
#include <array>

#include "text/utf8.h"

namespace mixtral {
namespace {

enum class Sign : uint8_t { blank, newline, digit, lower, upper, mark, broken };

/// The code point of a whole UTF-8 character.
char32_t code_point(std::string_view c) {
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(c[i]));
  };
  switch (c.size()) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
             (byte(3) & 0x3F);
  }
}

bool between(char32_t c, char32_t first, char32_t last) { return c >= first && c <= last; }

/// What a character is. Beyond ASCII: capitals of Latin-1, Greek and Cyrillic are known as such,
/// the blocks of punctuation and symbols are marks, and everything else is taken for a letter.
Sign sign_of(char32_t c) {
  if (c == '\n' || c == '\r' || c == 0x2028 || c == 0x2029) return Sign::newline;
  if (c == ' ' || c == '\t' || c == '\v' || c == '\f' || c == 0xA0 || between(c, 0x2000, 0x200B) ||
      c == 0x3000)
    return Sign::blank;
  if (c < 0x20 || c == 0x7F) return Sign::broken;
  if (between(c, '0', '9')) return Sign::digit;
  if (between(c, 'a', 'z')) return Sign::lower;
  if (between(c, 'A', 'Z')) return Sign::upper;
  if (c < 0xC0 || c == 0xD7 || c == 0xF7) return Sign::mark;
  if (between(c, 0xC0, 0xDE) || between(c, 0x391, 0x3A9) || between(c, 0x400, 0x42F))
    return Sign::upper;
  const bool is_mark = between(c, 0x2010, 0x2BFF) || between(c, 0x3001, 0x303F) ||
                       between(c, 0xFF00, 0xFF0F) || between(c, 0xFF1A, 0xFF20) || c >= 0x1F000;
  return is_mark ? Sign::mark : Sign::lower;
}

/// A character of the text and what is known of it.
struct Character {
  size_t begin = 0;  // its first byte
  char32_t code = 0;
  Sign sign = Sign::broken;
  bool in_word = false, starts_word = false, in_name = false;
};

std::vector<Character> read_characters(std::string_view text) {
  std::vector<Character> characters;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text.substr(at));
    Character c{.begin = at};
    if (length > 0) {
      c.code = code_point(text.substr(at, length));
      c.sign = sign_of(c.code);
    }
    characters.push_back(c);
    at += std::max<size_t>(length, 1);
  }
  return characters;
}

bool is_letter(const Character& c) { return c.sign == Sign::lower || c.sign == Sign::upper; }

/// Finds the words, and which of them are names.
void find_words(std::vector<Character>& text) {
  bool sentence_begins = true;
  for (size_t i = 0; i < text.size();) {
    if (!is_letter(text[i])) {
      const char32_t c = text[i].code;
      if (text[i].sign == Sign::newline || c == '.' || c == '!' || c == '?' || c == 0x2026)
        sentence_begins = true;
      else if (text[i].sign == Sign::digit)
        sentence_begins = false;
      ++i;
      continue;
    }
    size_t end = i + 1;
    auto joins = [&](size_t at) {
      if (is_letter(text[at]) || text[at].sign == Sign::digit) return true;
      const bool apostrophe = text[at].code == '\'' || text[at].code == 0x2019;
      return apostrophe && at + 1 < text.size() && is_letter(text[at + 1]);
    };
    while (end < text.size() && joins(end)) ++end;
    // "I", "I'll": a capital that says nothing.
    const bool first_person = text[i].code == 'I' && (end == i + 1 || !is_letter(text[i + 1]));
    const bool is_name = text[i].sign == Sign::upper && !sentence_begins && !first_person;
    text[i].starts_word = true;
    for (size_t j = i; j < end; ++j) {
      text[j].in_word = true;
      text[j].in_name = is_name;
    }
    sentence_begins = false;
    i = end;
  }
}

TokenKind kind_of(const Character& c) {
  if (c.in_name) return TokenKind::name;
  if (c.starts_word) return TokenKind::word_start;
  if (c.in_word) return TokenKind::continuation;
  switch (c.sign) {
    case Sign::digit:
      return TokenKind::digit;
    case Sign::mark:
      return TokenKind::punctuation;
    case Sign::newline:
      return TokenKind::newline;
    case Sign::blank:
      return TokenKind::space;
    default:
      return TokenKind::byte;
  }
}

/// A model's vocabulary may be larger than its tokenizer's: such ids stand for no text.
bool has_text(const Tokenizer& tokenizer, int32_t id) {
  return id >= 0 && id < tokenizer.vocab_size() && !tokenizer.is_control(id);
}

}  // namespace

std::string_view kind_name(TokenKind kind) {
  static constexpr std::array<std::string_view, kTokenKinds> kNames{
      "word start", "word continuation", "name", "digit",  "punctuation",
      "space",      "newline",           "byte", "control"};
  return kNames[static_cast<size_t>(kind)];
}

std::vector<TokenKind> classify_tokens(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string text;
  std::vector<size_t> starts;  // of each token in the text, and one past the last
  for (const int32_t id : ids) {
    starts.push_back(text.size());
    if (has_text(tokenizer, id)) text += tokenizer.piece(id);
  }
  starts.push_back(text.size());
  std::vector<Character> characters = read_characters(text);
  find_words(characters);

  std::vector<TokenKind> kinds;
  size_t at = 0;  // the first character that begins in the token, or after it
  for (size_t n = 0; n < ids.size(); ++n) {
    while (at < characters.size() && characters[at].begin < starts[n]) ++at;
    if (!has_text(tokenizer, ids[n])) {
      kinds.push_back(TokenKind::control);
      continue;
    }
    TokenKind kind = TokenKind::byte;  // for a token in which no whole character begins and ends
    for (size_t i = at; i < characters.size() && characters[i].begin < starts[n + 1]; ++i) {
      const size_t end = i + 1 < characters.size() ? characters[i + 1].begin : text.size();
      if (end > starts[n + 1]) break;
      const TokenKind here = kind_of(characters[i]);
      if (kind != TokenKind::newline || here != TokenKind::space) kind = here;
      if (here != TokenKind::space && here != TokenKind::newline) break;
    }
    kinds.push_back(kind);
  }
  return kinds;
}

}  // namespace mixtral
