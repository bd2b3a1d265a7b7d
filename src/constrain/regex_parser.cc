#include <fmt/format.h>

#include <optional>
#include <string>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "constrain/regex.h"
#include "constrain/shorthand.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace mixtral::constrain {
namespace {

constexpr size_t kMostBytes = 20'000;
constexpr int kMostGroupDepth = 200;
constexpr uint64_t kMostRepeats = 100'000;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text.size() > kMostBytes)
      throw Error(fmt::format("the regular expression has {} bytes; at most {} are accepted",
                              text.size(), kMostBytes));
    if (!is_valid_utf8(text)) throw Error("the regular expression is not valid UTF-8");
  }

  Regex parse() {
    Regex regex = alternatives(0);
    if (!at_end()) fail("a ) without its (");
    return regex;
  }

 private:
  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(fmt::format("the regular expression {} cannot be used, at its character {}: {}",
                            printable(text_), count_characters(text_.substr(0, at_)) + 1, reason));
  }

  bool at_end() const { return at_ == text_.size(); }
  bool is_next(std::string_view word) const { return text_.substr(at_).starts_with(word); }
  bool take(std::string_view word) {
    if (!is_next(word)) return false;
    at_ += word.size();
    return true;
  }
  int32_t take_character() {
    if (at_end()) fail("it ends too early");
    const Character c = first_character(text_.substr(at_));
    at_ += c.length;
    return c.code;
  }

  Regex alternatives(int depth) {
    if (depth > kMostGroupDepth)
      fail(fmt::format("groups within one another deeper than {}", kMostGroupDepth));
    Regex choice{.kind = Regex::Kind::choice};
    do choice.parts.push_back(sequence(depth));
    while (take("|"));
    if (choice.parts.size() == 1) return std::move(choice.parts[0]);
    return choice;
  }

  Regex sequence(int depth) {
    Regex sequence;
    while (!at_end() && !is_next("|") && !is_next(")")) {
      Regex part = atom(depth);
      sequence.parts.push_back(repeated(std::move(part)));
    }
    return sequence;
  }

  Regex repeated(Regex part) {
    uint64_t least = 0;
    std::optional<uint64_t> most;
    const size_t before = at_;
    if (take("*")) {
    } else if (take("+")) {
      least = 1;
    } else if (take("?")) {
      most = 1;
    } else if (!counts(least, most)) {
      return part;
    }
    if (part.kind == Regex::Kind::start || part.kind == Regex::Kind::end) {
      at_ = before;
      fail("a count behind an anchor");
    }
    if (is_next("+")) fail("possessive quantifiers are not supported");
    take("?");  // lazy: the same texts match
    uint64_t ignored = 0;
    std::optional<uint64_t> none;
    if (is_next("*") || is_next("+") || is_next("?") || counts(ignored, none))
      fail("a count behind a count; put a group around the first");
    return {.kind = Regex::Kind::repeat, .parts = {std::move(part)}, .least = least, .most = most};
  }

  // {m}, {m,} or {m,n}; other braces are characters.
  bool counts(uint64_t& least, std::optional<uint64_t>& most) {
    if (!is_next("{")) return false;
    const size_t close = text_.find('}', at_);
    if (close == std::string_view::npos) return false;
    const std::string_view inner = text_.substr(at_ + 1, close - at_ - 1);
    if (inner.empty() || inner.find_first_not_of("0123456789,") != std::string_view::npos)
      return false;
    const size_t comma = inner.find(',');
    const auto number = [&](std::string_view digits) {
      const auto value = parse_unsigned(digits);
      if (!value) fail("a count that is no number; write {m}, {m,} or {m,n}");
      if (*value > kMostRepeats) fail(fmt::format("a count over {}", kMostRepeats));
      return *value;
    };
    least = number(inner.substr(0, comma));
    if (comma == std::string_view::npos)
      most = least;
    else if (comma + 1 < inner.size())
      most = number(inner.substr(comma + 1));
    if (most && *most < least) fail("counts in the wrong order");
    at_ = close + 1;
    return true;
  }

  Regex atom(int depth) {
    if (take("(")) return group(depth);
    if (take("[")) return {.kind = Regex::Kind::set, .set = bracket()};
    if (take("^")) return {.kind = Regex::Kind::start};
    if (take("$")) return {.kind = Regex::Kind::end};
    if (take("."))
      return {.kind = Regex::Kind::set,
              .set = CharSet({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}).complement()};
    if (is_next("*") || is_next("+") || is_next("?")) fail("a count of nothing");
    if (is_next("\\A") || is_next("\\z") || is_next("\\Z")) {
      const bool start = is_next("\\A");
      at_ += 2;
      return {.kind = start ? Regex::Kind::start : Regex::Kind::end};
    }
    if (take("\\")) {
      if (auto known = class_escape()) return {.kind = Regex::Kind::set, .set = known->narrow};
      if (is_next("b") || is_next("B")) fail("word boundaries are not supported");
      return {.kind = Regex::Kind::set, .set = CharSet::one(escape())};
    }
    return {.kind = Regex::Kind::set, .set = CharSet::one(take_character())};
  }

  Regex group(int depth) {
    if (take("?")) {
      if (is_next("=") || is_next("!") || is_next("<=") || is_next("<!"))
        fail("look-around is not supported");
      if (is_next("P=") || is_next("(")) fail("back references are not supported");
      take("P");
      if (take("<")) {
        const size_t close = text_.find('>', at_);
        if (close == std::string_view::npos) fail("a group's name is not closed");
        at_ = close + 1;
      } else if (!take(":")) {
        fail("this kind of group is not supported (flags, atomic groups, comments)");
      }
    }
    Regex inner = alternatives(depth + 1);
    if (!take(")")) fail("a group is not closed");
    return inner;
  }

  // \d, \w, \s, \p{...} and their complements, behind the backslash.
  std::optional<Shorthand> class_escape() {
    if (at_end()) fail("it ends with a backslash");
    if (auto known = shorthand(text_[at_])) {
      ++at_;
      return known;
    }
    if (!is_next("p") && !is_next("P")) return {};
    const bool negated = take_character() == 'P';
    const size_t close = text_.find('}', at_);
    if (!take("{") || close == std::string_view::npos) fail("expected \\p{...}");
    std::string_view name = text_.substr(at_, close - at_);
    const bool caret = name.starts_with('^');
    const auto set = unicode_property(name.substr(caret ? 1 : 0));
    if (!set) fail("this Unicode property is not supported; use L, Lu, Ll, Lt, M, N, Nd or P");
    at_ = close + 1;
    const Shorthand property{*set, *set};
    return negated != caret ? property.complement() : property;
  }

  // The character that an escape stands for, behind the backslash.
  int32_t escape() {
    const size_t before = at_;
    const int32_t c = take_character();
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case '0':
        return 0;
      case 'x':
        return hexadecimal(take("{") ? 0 : 2);
      case 'u':
        return utf16(hexadecimal(take("{") ? 0 : 4));
      case 'U':
        return hexadecimal(8);
      case 'c':
        return take_character() % 32;
      default:
        break;
    }
    at_ = before;
    if (c >= '1' && c <= '9') fail("back references are not supported");
    if (c == 'k') fail("back references are not supported");
    if (c < 128 && (is_letter(c) || is_decimal(c))) fail("an escape that is not known");
    take_character();
    return c;
  }

  // So many digits; 0: up to the closing brace.
  int32_t hexadecimal(size_t digits) {
    size_t length = digits;
    if (digits == 0) {
      const size_t close = text_.find('}', at_);
      length = close == std::string_view::npos ? 0 : close - at_;
    }
    const std::string_view word = text_.substr(at_, length);
    if (word.empty() || word.size() < length || word.size() > 8 ||
        word.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
      fail("expected hexadecimal digits");
    const auto code = std::stoull(std::string(word), nullptr, 16);
    if (code > 0x10FFFF) fail("a character beyond U+10FFFF");
    at_ += length + (digits == 0 ? 1 : 0);
    return static_cast<int32_t>(code);
  }

  // Two escapes that are the halves of a character.
  int32_t utf16(int32_t code) {
    if (code < 0xD800 || code > 0xDFFF) return code;
    if (code < 0xDC00 && take("\\u")) {
      const int32_t low = hexadecimal(4);
      if (low >= 0xDC00 && low <= 0xDFFF) return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    fail("half of a surrogate pair");
  }

  CharSet bracket() {
    const bool negated = take("^");
    if (is_next("]")) fail("an empty class, or a ] that needs a backslash");
    CharSet set;
    while (!take("]")) {
      if (is_next("[:") || is_next("[.") || is_next("[=")) fail("POSIX classes are not supported");
      if (at_end()) fail("a class is not closed");
      std::optional<Shorthand> known;
      const int32_t first = bracket_character(known);
      if (known) {
        if (is_next("-") && !is_next("-]")) fail("a range from a class");
        set = set | (negated ? known->wide : known->narrow);
        continue;
      }
      int32_t last = first;
      if (is_next("-") && !is_next("-]")) {
        take("-");
        last = bracket_character(known);
        if (known) fail("a range to a class");
        if (last < first) fail("a range in the wrong order");
      }
      set = set | CharSet({{first, last}});
    }
    return negated ? set.complement() : set;
  }

  int32_t bracket_character(std::optional<Shorthand>& known) {
    if (!take("\\")) return take_character();
    known = class_escape();
    if (known) return 0;
    if (take("b")) return '\b';
    return escape();
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Regex parse_regex(std::string_view expression) { return Parser(expression).parse(); }

}  // namespace mixtral::constrain
