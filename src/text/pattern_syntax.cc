// Oniguruma's (Ruby's) syntax of regular expressions in PCRE2's.
#include <fmt/format.h>

#include <array>
#include <vector>

#include "base/error.h"
#include "io/json.h"
#include "text/pattern.h"

namespace mixtral {
namespace {

// The characters of \s, \w and \h as Oniguruma has them; PCRE2's \s and \w differ in a few.
constexpr std::string_view kSpace =
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";
constexpr std::string_view kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
    "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
constexpr std::string_view kHexadecimal = "0-9a-fA-F";

class Translator {
 public:
  Translator(std::string_view expression, std::string_view source)
      : in_(expression), source_(source) {}

  std::string translate() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw Error(fmt::format("{}: the regex pattern \"{}\" uses {}, which is not supported", source_,
                            printable(in_), what));
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  /// Notes that an atom, to which a quantifier can belong, begins here.
  void begin_atom() { atom_ = out_.size(); }

  void step() {
    const char c = in_[at_];
    if (c == '\\') {
      begin_atom();
      escape(false);
    } else if (c == '[') {
      begin_atom();
      character_class();
    } else if (c == '(') {
      group();
    } else if (c == ')') {
      out_ += c;
      ++at_;
      if (!open_.empty()) {
        atom_ = open_.back();
        open_.pop_back();
      }
    } else if (c == '{') {
      interval();
    } else {
      if (c != '*' && c != '+' && c != '?') begin_atom();
      out_ += c;
      ++at_;
    }
  }

  void group() {
    open_.push_back(out_.size());
    if (peek(1) == '*') refuse("a verb \"(*\"");
    if (peek(1) != '?') {
      out_ += '(';
      ++at_;
      return;
    }
    const char kind = peek(2), after = peek(3);
    const bool look = kind == '=' || kind == '!' || (kind == '<' && (after == '=' || after == '!'));
    if (kind == ':' || kind == '>' || look) {
      const size_t length = kind == '<' ? 4 : 3;
      out_ += in_.substr(at_, length);
      at_ += length;
      return;
    }
    // (?i), (?i: and (?-i:
    size_t end = at_ + 2;
    while (end < in_.size() && (in_[end] == 'i' || in_[end] == '-')) ++end;
    if (end == at_ + 2 || end >= in_.size() || (in_[end] != ':' && in_[end] != ')'))
      refuse(fmt::format("\"{}\"", in_.substr(at_, 4)));
    if (in_[end] == ')') open_.pop_back();
    out_ += in_.substr(at_, end + 1 - at_);
    at_ = end + 1;
  }

  /// {n}, {n,}, {n,m}; a + after it repeats the whole once more in Ruby's syntax.
  void interval() {
    const size_t end = in_.find('}', at_);
    const std::string_view text =
        end == std::string_view::npos ? "{" : in_.substr(at_, end + 1 - at_);
    const bool digits_only =
        text.size() > 2 && text.find_first_not_of("0123456789,{}") == std::string_view::npos;
    if (!digits_only) {  // an ordinary brace
      begin_atom();
      out_ += "\\{";
      ++at_;
      return;
    }
    if (text[1] == ',') refuse("an interval without a least number");
    out_ += text;
    at_ = end + 1;
    if (peek() == '+') {
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++at_;
    }
  }

  void escape(bool in_class) {
    const char c = peek(1);
    at_ += 2;
    const auto set = [&](std::string_view characters, bool negated) {
      if (in_class && negated) refuse(fmt::format("\\{} within a class", c));
      if (in_class)
        out_ += characters;
      else
        out_ += fmt::format("[{}{}]", negated ? "^" : "", characters);
    };
    switch (c) {
      case 's':
        return set(kSpace, false);
      case 'S':
        return set(kSpace, true);
      case 'w':
        return set(kWord, false);
      case 'W':
        return set(kWord, true);
      case 'h':
        return set(kHexadecimal, false);
      case 'H':
        return set(kHexadecimal, true);
      case 'u': {
        const std::string_view digits = in_.substr(std::min(at_, in_.size()), 4);
        if (digits.size() != 4 ||
            digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
          refuse("\\u without four digits");
        out_ += fmt::format("\\x{{{}}}", digits);
        at_ += 4;
        return;
      }
      case 'p':
      case 'P':
      case 'd':
      case 'D':
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
      case 'x':
        break;
      case 'v':  // a vertical tab in Ruby's syntax
        out_ += "\\x{b}";
        return;
      case 'A':
      case 'z':
      case 'Z':
      case 'b':
      case 'B':
        if (in_class) refuse(fmt::format("\\{} within a class", c));
        break;
      case '\0':
        refuse("a backslash at its end");
      default:
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
          refuse(fmt::format("\\{}", c));
        break;
    }
    out_ += '\\';
    out_ += c;
    if ((c == 'p' || c == 'P' || c == 'x') && peek() == '{') {
      const size_t end = in_.find('}', at_);
      if (end == std::string_view::npos) refuse("a brace without its end");
      out_ += in_.substr(at_, end + 1 - at_);
      at_ = end + 1;
    }
  }

  void character_class() {
    out_ += '[';
    ++at_;
    if (peek() == '^') {
      out_ += '^';
      ++at_;
    }
    if (peek() == ']') refuse("an empty class");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        escape(true);
      } else if (in_[at_] == '[' && peek(1) == ':') {
        const size_t end = in_.find(":]", at_);
        if (end == std::string_view::npos) refuse("\"[:\" without its end");
        out_ += in_.substr(at_, end + 2 - at_);
        at_ = end + 2;
      } else if (in_[at_] == '[') {
        refuse("a class within a class");
      } else if (in_[at_] == '&' && peek(1) == '&') {
        refuse("the intersection of classes (&&)");
      } else {
        out_ += in_[at_++];
      }
    }
    if (at_ < in_.size()) {
      out_ += ']';
      ++at_;
    }
  }

  std::string_view in_, source_;
  size_t at_ = 0, atom_ = 0;
  std::string out_;
  std::vector<size_t> open_;  // where open groups begin in the output
};

}  // namespace

std::string pcre_syntax(std::string_view expression, std::string_view source) {
  return Translator(expression, source).translate();
}

}  // namespace mixtral
