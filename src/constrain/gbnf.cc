#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "constrain/expression.h"
#include "constrain/grammar.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace mixtral::constrain {
namespace {

using Part = Expression::Part;

constexpr size_t kMostBytes = size_t{1} << 20;
constexpr int kMostDepth = 200;
constexpr uint64_t kMostRepeats = 100'000;
constexpr std::string_view kSpecial = "|()*+?{}[]\"";

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

/// Reads llama.cpp's notation: `name ::= alternatives`, one rule a line, which goes on inside
/// parentheses, behind `|` and `::=`, and where the next line begins with `|`.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text.size() > kMostBytes)
      throw Error(fmt::format("the grammar has {} bytes; at most {} are accepted", text.size(),
                              kMostBytes));
    if (!is_valid_utf8(text)) throw Error("the grammar is not valid UTF-8");
  }

  Grammar parse() {
    skip(Lines::cross);
    while (at_ < text_.size()) rule();
    for (const auto& [name, entry] : rules_)
      if (!entry.defined)
        throw Error(fmt::format("the grammar's line {}: the rule {} is not defined", entry.line,
                                printable(name)));
    const auto root = rules_.find("root");
    if (root == rules_.end())
      throw Error("the grammar has no rule named root, which it has to begin with");
    return Grammar(expression_.compile(root->second.rule));
  }

 private:
  enum class Lines { stay, cross };  // whether blanks include line breaks
  struct RuleEntry {
    Expression::Rule rule = 0;
    size_t line = 0;  // where it was met first
    bool defined = false;
  };

  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(fmt::format("the grammar's line {}: {}", line(), reason));
  }
  size_t line() const {
    return 1 + static_cast<size_t>(std::ranges::count(text_.substr(0, at_), '\n'));
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  void skip(Lines lines) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        while (at_ < text_.size() && text_[at_] != '\n' && text_[at_] != '\r') ++at_;
      } else if (c == ' ' || c == '\t' || (lines == Lines::cross && (c == '\n' || c == '\r'))) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string name() {
    const size_t begin = at_;
    while (is_name_character(peek())) ++at_;
    if (at_ == begin) fail(fmt::format("expected a rule's name, found {}", found()));
    return std::string(text_.substr(begin, at_ - begin));
  }
  std::string found() const {
    if (at_ == text_.size()) return "the end";
    return "\"" + printable(text_.substr(at_, first_character(text_.substr(at_)).length)) + "\"";
  }

  RuleEntry& entry(const std::string& name) {
    const auto [known, is_new] = rules_.try_emplace(name);
    if (is_new) known->second = {expression_.add_rule("the rule " + name), line(), false};
    return known->second;
  }

  void rule() {
    const std::string rule_name = name();
    skip(Lines::stay);
    if (!take("::="))
      fail(fmt::format("expected ::= behind {}, found {}", printable(rule_name), found()));
    RuleEntry& known = entry(rule_name);
    if (known.defined) fail(fmt::format("the rule {} is defined twice", printable(rule_name)));
    known.defined = true;
    const Expression::Rule number = known.rule;
    skip(Lines::cross);
    // An empty rule: what follows is the next one.
    expression_.define(number, begins_rule() ? expression_.empty() : alternatives(0));
    if (at_ < text_.size() && peek() != '\n' && peek() != '\r')
      if (!begins_rule()) fail(fmt::format("expected the end of the rule, found {}", found()));
    skip(Lines::cross);
  }

  // Whether a name and ::= stand here.
  bool begins_rule() const {
    size_t at = at_;
    while (at < text_.size() && is_name_character(text_[at])) ++at;
    if (at == at_) return false;
    while (at < text_.size() && (text_[at] == ' ' || text_[at] == '\t')) ++at;
    return text_.substr(at).starts_with("::=");
  }

  Part alternatives(int depth) {
    if (depth > kMostDepth)
      fail(fmt::format("parentheses within one another deeper than {}", kMostDepth));
    std::vector<Part> choices;
    while (true) {
      choices.push_back(sequence(depth));
      if (depth == 0) {
        const size_t before = at_;
        skip(Lines::cross);
        if (peek() != '|') at_ = before;
      }
      if (!take("|")) break;
      skip(Lines::cross);
      // "a |" before the next rule: the empty text.
      if (depth == 0 && begins_rule()) {
        choices.push_back(expression_.empty());
        break;
      }
    }
    return expression_.choice(std::move(choices));
  }

  Part sequence(int depth) {
    const Lines lines = depth > 0 ? Lines::cross : Lines::stay;
    std::vector<Part> parts;
    while (true) {
      skip(lines);
      std::vector<Part> atom;
      if (take("\"")) {
        while (!take("\"")) atom.push_back(expression_.chars(CharSet::one(character("a literal"))));
      } else if (take("[")) {
        atom.push_back(bracket());
      } else if (take(".")) {
        atom.push_back(expression_.chars(CharSet::all()));
      } else if (take("(")) {
        atom.push_back(alternatives(depth + 1));
        skip(Lines::cross);
        if (!take(")")) fail(fmt::format("expected a closing parenthesis, found {}", found()));
      } else if (peek() == '<' || text_.substr(at_).starts_with("!<")) {
        fail("tokens in angle brackets are not supported; write their text");
      } else if (is_name_character(peek())) {
        if (depth > 0 && begins_rule()) fail("expected a closing parenthesis, found a new rule");
        atom.push_back(expression_.call(entry(name()).rule));
      } else {
        if (kSpecial.find(peek()) != std::string_view::npos && peek() != '|' && peek() != ')' &&
            peek() != '\0')
          fail(fmt::format("a {} without anything before it", found()));
        break;
      }
      skip(lines);
      const Part part = counted(expression_.sequence(std::move(atom)));
      parts.push_back(part);
    }
    return expression_.sequence(std::move(parts));
  }

  Part counted(Part part) {
    while (true) {
      if (take("*")) {
        part = expression_.repeat(part, 0);
      } else if (take("+")) {
        part = expression_.repeat(part, 1);
      } else if (take("?")) {
        part = expression_.optional(part);
      } else if (take("{")) {
        skip(Lines::stay);
        const uint64_t least = count();
        std::optional<uint64_t> most = least;
        skip(Lines::stay);
        if (take(",")) {
          skip(Lines::stay);
          most = peek() == '}' ? std::nullopt : std::optional(count());
          skip(Lines::stay);
        }
        if (!take("}")) fail(fmt::format("expected {{m}}, {{m,}} or {{m,n}}, found {}", found()));
        if (most && *most < least) fail("counts of repetition in the wrong order");
        part = expression_.repeat(part, least, most);
      } else {
        return part;
      }
    }
  }

  uint64_t count() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    const auto value = parse_unsigned(text_.substr(begin, at_ - begin));
    if (!value) fail(fmt::format("expected a count, found {}", found()));
    if (*value > kMostRepeats) fail(fmt::format("a count over {}", kMostRepeats));
    return *value;
  }

  Part bracket() {
    const bool negated = take("^");
    CharSet set;
    while (!take("]")) {
      const int32_t first = character("a class");
      int32_t last = first;
      if (peek() == '-' && !text_.substr(at_).starts_with("-]")) {
        take("-");
        last = character("a class");
        if (last < first) fail("a range of characters in the wrong order");
      }
      set = set | CharSet({{first, last}});
    }
    return expression_.chars(negated ? set.complement() : set);
  }

  // A character of a literal or class, which may be an escape.
  int32_t character(std::string_view where) {
    if (at_ == text_.size() || peek() == '\n' || peek() == '\r')
      fail(fmt::format("{} is not closed", where));
    if (!take("\\")) {
      const Character c = first_character(text_.substr(at_));
      at_ += c.length;
      return c.code;
    }
    const char letter = peek();
    ++at_;
    switch (letter) {
      case 'x':
        return hexadecimal(2);
      case 'u':
        return hexadecimal(4);
      case 'U':
        return hexadecimal(8);
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'n':
        return '\n';
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^':
      case '/':
        return letter;
      default:
        --at_;
        fail(fmt::format("an escape that is not known: \\ and {}", found()));
    }
  }

  int32_t hexadecimal(size_t digits) {
    const std::string_view word = text_.substr(at_, digits);
    if (word.size() < digits ||
        word.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
      fail(fmt::format("expected {} hexadecimal digits", digits));
    const auto code = std::stoull(std::string(word), nullptr, 16);
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
      fail(fmt::format("\\u{} is no character", word));
    at_ += digits;
    return static_cast<int32_t>(code);
  }

  std::string_view text_;
  size_t at_ = 0;
  Expression expression_;
  std::map<std::string, RuleEntry> rules_;
};

}  // namespace

Grammar compile_gbnf(std::string_view text) { return Parser(text).parse(); }

}  // namespace mixtral::constrain
