#include "text/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

using TokenKind = Token::Kind;

/// Line ends as "\n", and without the last one.
std::string with_plain_lines(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r') {
      result += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    } else {
      result += text[i];
    }
  }
  if (result.ends_with('\n')) result.pop_back();
  return result;
}

bool is_space(int32_t code) { return is_white_space(code) || (code >= 0x1C && code <= 0x1F); }

size_t space_bytes(std::string_view text) {
  size_t count = 0;
  while (count < text.size()) {
    const Character c = first_character(text.substr(count));
    if (!is_space(c.code)) break;
    count += c.length;
  }
  return count;
}

void strip_right(std::string& text) {
  while (!text.empty()) {
    const Character c = last_character(text);
    if (!is_space(c.code)) return;
    text.resize(text.size() - c.length);
  }
}

constexpr std::array<std::string_view, 29> kSigns = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(",
    ")",  "{",  "}",  ">",  "<",  "=",  ".", ":", "|", ",", ";", "!", "@", "$"};

class Lexer {
 public:
  Lexer(std::string_view text, std::string_view source)
      : text_(with_plain_lines(text)), source_(source) {}

  std::vector<Token> tokenize() {
    while (at_ < text_.size()) read_data();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string_view reason) const { fail_at(source_, line_, reason); }

  std::string_view rest() const { return std::string_view(text_).substr(at_); }
  bool at(std::string_view part) const { return rest().starts_with(part); }

  void advance(size_t bytes) {
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         text_.begin() + static_cast<std::ptrdiff_t>(at_ + bytes),
                                         '\n'));
    at_ += bytes;
  }

  void add(TokenKind kind, std::string text, Value number = {}) {
    tokens_.push_back({kind, line_, std::move(text), std::move(number)});
  }

  /// Text up to the next tag, without the spaces that the tag's sign or the line takes away.
  void add_data(std::string data, char sign, bool strips_line) {
    if (sign == '-') {
      strip_right(data);
    } else if (sign != '+' && strips_line) {
      const size_t newline = data.rfind('\n');
      const size_t begin = newline == std::string::npos ? 0 : newline + 1;
      if ((begin > 0 || line_begins_) && begin < data.size() &&
          space_bytes(std::string_view(data).substr(begin)) == data.size() - begin)
        data.resize(begin);
    }
    if (!data.empty()) add(TokenKind::data, std::move(data));
  }

  void read_data() {
    size_t open = at_;
    while (true) {
      open = text_.find('{', open);
      if (open == std::string::npos || open + 1 >= text_.size()) {
        add_data(text_.substr(at_), '+', false);
        at_ = text_.size();
        return;
      }
      const char next = text_[open + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++open;
    }
    const char kind = text_[open + 1];
    const char sign = open + 2 < text_.size() && (text_[open + 2] == '-' || text_[open + 2] == '+')
                          ? text_[open + 2]
                          : '\0';
    add_data(text_.substr(at_, open - at_), sign, kind != '{');
    advance(open + 2 + (sign == '\0' ? 0 : 1) - at_);
    if (kind == '#')
      skip_comment();
    else if (kind == '{')
      read_tag(TokenKind::print_begin, TokenKind::print_end, "}}");
    else if (!read_raw())
      read_tag(TokenKind::statement_begin, TokenKind::statement_end, "%}");
  }

  /// What stands behind a tag's end and belongs to it.
  void finish_tag(char sign, bool trims) {
    const size_t before = at_;
    if (sign == '-')
      advance(space_bytes(rest()));
    else if (sign != '+' && trims && at("\n"))
      advance(1);
    line_begins_ = at_ > before && text_[at_ - 1] == '\n';
  }

  void skip_comment() {
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) fail("the comment {# has no end; expected #}");
    const char last = end > at_ ? text_[end - 1] : '\0';
    advance(end + 2 - at_);
    finish_tag(last, true);
  }

  /// {% raw %} ... {% endraw %}, after "{%".
  bool read_raw() {
    size_t place = at_ + space_bytes(rest());
    if (text_.compare(place, 3, "raw") != 0) return false;
    place += 3;
    place += space_bytes(std::string_view(text_).substr(place));
    const bool minus = text_.compare(place, 1, "-") == 0;
    if (text_.compare(place + (minus ? 1 : 0), 2, "%}") != 0) return false;
    advance(place + (minus ? 3 : 2) - at_);
    finish_tag(minus ? '-' : '\0', false);
    for (size_t open = at_; (open = text_.find("{%", open)) != std::string::npos; ++open) {
      size_t inside = open + 2;
      const char sign = inside < text_.size() ? text_[inside] : '\0';
      if (sign == '-' || sign == '+') ++inside;
      inside += space_bytes(std::string_view(text_).substr(std::min(inside, text_.size())));
      if (text_.compare(inside, 6, "endraw") != 0) continue;
      inside += 6;
      inside += space_bytes(std::string_view(text_).substr(std::min(inside, text_.size())));
      char end_sign = inside < text_.size() ? text_[inside] : '\0';
      if (end_sign == '-' || end_sign == '+')
        ++inside;
      else
        end_sign = '\0';
      if (text_.compare(inside, 2, "%}") != 0) continue;
      add_data(text_.substr(at_, open - at_), sign, true);
      advance(inside + 2 - at_);
      finish_tag(end_sign, true);
      return true;
    }
    fail("{% raw %} has no {% endraw %}");
  }

  void read_tag(TokenKind begin, TokenKind end, std::string_view closing) {
    add(begin, "");
    size_t open_brackets = 0;
    while (true) {
      advance(space_bytes(rest()));
      if (at_ >= text_.size()) fail(fmt::format("a tag has no end; expected {}", closing));
      if (open_brackets == 0) {
        const bool signed_end = (at("-") || (at("+") && end == TokenKind::statement_end)) &&
                                rest().substr(1).starts_with(closing);
        if (signed_end || at(closing)) {
          const char sign = signed_end ? text_[at_] : '\0';
          advance(closing.size() + (signed_end ? 1 : 0));
          add(end, "");
          finish_tag(sign, end == TokenKind::statement_end);
          return;
        }
      }
      read_token(open_brackets);
    }
  }

  void read_token(size_t& open_brackets) {
    const char c = text_[at_];
    if (c >= '0' && c <= '9') return read_number();
    if (c == '\'' || c == '"') return read_text(c);
    size_t length = 0;
    while (at_ + length < text_.size()) {
      const Character next = first_character(rest().substr(length));
      if (!is_word_character(next.code)) break;
      length += next.length;
    }
    if (length > 0) {
      add(TokenKind::name, text_.substr(at_, length));
      advance(length);
      return;
    }
    for (const std::string_view sign : kSigns) {
      if (!at(sign)) continue;
      if (sign == "!" || sign == "@" || sign == "$") break;
      if (sign == "(" || sign == "[" || sign == "{") ++open_brackets;
      if (sign == ")" || sign == "]" || sign == "}") {
        if (open_brackets == 0) fail(fmt::format("unexpected '{}'", sign));
        --open_brackets;
      }
      add(TokenKind::sign, std::string(sign));
      advance(sign.size());
      return;
    }
    fail(fmt::format("unexpected character '{}'",
                     printable(rest().substr(0, first_character(rest()).length))));
  }

  void read_number() {
    const bool after_dot = !tokens_.empty() && tokens_.back().kind == TokenKind::sign &&
                           tokens_.back().text == "." && at_ > 0 && text_[at_ - 1] == '.';
    std::string digits;
    size_t place = at_;
    const auto take_digits = [&](std::string_view allowed) {
      while (place < text_.size() &&
             (allowed.find(text_[place]) != std::string_view::npos || text_[place] == '_')) {
        if (text_[place] != '_') digits += text_[place];
        ++place;
      }
    };
    int base = 10;
    if (text_[place] == '0' && place + 1 < text_.size()) {
      const char mark = static_cast<char>(text_[place + 1] | 0x20);
      base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
    }
    constexpr std::string_view decimal = "0123456789";
    bool fractional = false;
    if (base != 10) {
      place += 2;
      take_digits(base == 16 ? "0123456789abcdefABCDEF"
                             : decimal.substr(0, static_cast<size_t>(base)));
    } else {
      take_digits(decimal);
      const auto digit_at = [&](size_t i) {
        return i < text_.size() && text_[i] >= '0' && text_[i] <= '9';
      };
      if (!after_dot && place < text_.size() && text_[place] == '.' && digit_at(place + 1)) {
        fractional = true;
        digits += '.';
        ++place;
        take_digits(decimal);
      }
      if (!after_dot && place < text_.size() && (text_[place] | 0x20) == 'e') {
        const bool has_sign =
            place + 1 < text_.size() && (text_[place + 1] == '-' || text_[place + 1] == '+');
        if (digit_at(place + (has_sign ? 2 : 1))) {
          fractional = true;
          digits += 'e';
          if (has_sign) digits += text_[place + 1];
          place += has_sign ? 2 : 1;
          take_digits(decimal);
        }
      }
    }
    add(TokenKind::number, text_.substr(at_, place - at_),
        fractional ? Value::of(std::strtod(digits.c_str(), nullptr))
                   : Value::of(whole(digits, base)));
    advance(place - at_);
  }

  Integer whole(std::string_view digits, int base) const {
    if (digits.empty()) fail("a number has no digits");
    Integer value = 0;
    for (const char c : digits) {
      const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
      if (__builtin_mul_overflow(value, static_cast<Integer>(base), &value) ||
          __builtin_add_overflow(value, static_cast<Integer>(digit), &value))
        fail(fmt::format("the number {} is too large", digits));
    }
    return value;
  }

  void read_text(char quote) {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) fail("a text has no end");
    add(TokenKind::text, unescaped(std::string_view(text_).substr(at_ + 1, end - at_ - 1)));
    advance(end + 1 - at_);
  }

  /// The escapes of Python's string literals.
  std::string unescaped(std::string_view raw) const {
    std::string result;
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\') {
        result += raw[i];
        continue;
      }
      const char c = raw[++i];
      constexpr std::string_view names = "abfnrtv\\'\"", values = "\a\b\f\n\r\t\v\\'\"";
      const auto code = [&](size_t most, int base, size_t least) {
        int32_t value = 0;
        size_t count = 0;
        while (count < most && i + 1 < raw.size()) {
          const char d = raw[i + 1];
          const int digit = d >= '0' && d <= '9'                     ? d - '0'
                            : (d | 0x20) >= 'a' && (d | 0x20) <= 'f' ? (d | 0x20) - 'a' + 10
                                                                     : 99;
          if (digit >= base) break;
          value = value * base + digit;
          ++count;
          ++i;
        }
        if (count < least || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
          fail(fmt::format("'\\{}' in a text is no character", c));
        append_utf8(value, result);
      };
      if (const size_t place = names.find(c); place != std::string_view::npos) {
        result += values[place];
      } else if (c == '\n') {
        continue;
      } else if (c == 'x') {
        code(2, 16, 2);
      } else if (c == 'u') {
        code(4, 16, 4);
      } else if (c == 'U') {
        code(8, 16, 8);
      } else if (c >= '0' && c <= '7') {
        --i;
        code(3, 8, 1);
      } else if (c == 'N') {
        fail("\\N{...} in a text is not supported; write the character itself");
      } else {
        result += '\\';
        result += c;
      }
    }
    return result;
  }

  std::string text_;
  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // whether the last tag took a newline, or none was yet
  std::vector<Token> tokens_;
};

}  // namespace

void fail_at(std::string_view source, int line, std::string_view reason) {
  throw Error(fmt::format("{}:{}: {}", source, line, reason));
}

std::vector<Token> tokenize(std::string_view template_text, std::string_view source) {
  return Lexer(template_text, source).tokenize();
}

}  // namespace mixtral::jinja
