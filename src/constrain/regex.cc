#include "constrain/regex.h"

#include <fmt/format.h>

#include "base/error.h"
#include "constrain/grammar.h"

namespace mixtral::constrain {
namespace {

using Part = Expression::Part;

// Which ends of the text a part reaches, and has an anchor at.
struct Edges {
  bool left = false, right = false;
};

class Writer {
 public:
  Writer(Expression& expression, RegexMatch match, const CharWriter& write)
      : expression_(expression), match_(match), write_(write) {}

  // An alternative, or several, that the whole text consists of.
  Part at_edges(const Regex& regex, Edges anchored) {
    if (regex.kind == Regex::Kind::choice) {
      std::vector<Part> parts;
      parts.reserve(regex.parts.size());
      for (const Regex& alternative : regex.parts) parts.push_back(at_edges(alternative, anchored));
      return expression_.choice(std::move(parts));
    }
    const bool one = regex.kind != Regex::Kind::sequence;
    std::span<const Regex> parts = one ? std::span(&regex, 1) : std::span(regex.parts);
    while (!parts.empty() && parts.front().kind == Regex::Kind::start) {
      anchored.left = true;
      parts = parts.subspan(1);
    }
    while (!parts.empty() && parts.back().kind == Regex::Kind::end) {
      anchored.right = true;
      parts = parts.first(parts.size() - 1);
    }
    if (parts.size() == 1 && !one &&
        (parts[0].kind == Regex::Kind::choice || parts[0].kind == Regex::Kind::sequence))
      return at_edges(parts[0], anchored);
    std::vector<Part> written;
    if (!anchored.left) written.push_back(anything());
    for (const Regex& part : parts) written.push_back(inner(part));
    if (!anchored.right) written.push_back(anything());
    return expression_.sequence(std::move(written));
  }

 private:
  Part anything() {
    if (match_ == RegexMatch::whole) return expression_.empty();
    return expression_.repeat(write_(CharSet::all()), 0);
  }

  Part inner(const Regex& regex) {
    std::vector<Part> parts;
    parts.reserve(regex.parts.size());
    for (const Regex& part : regex.parts) parts.push_back(inner(part));
    switch (regex.kind) {
      case Regex::Kind::set:
        return write_(regex.set);
      case Regex::Kind::sequence:
        return expression_.sequence(std::move(parts));
      case Regex::Kind::choice:
        return expression_.choice(std::move(parts));
      case Regex::Kind::repeat:
        return expression_.repeat(parts[0], regex.least, regex.most);
      case Regex::Kind::start:
      case Regex::Kind::end:
        break;
    }
    throw Error("the regular expression has ^ or $ in its middle; expected them at the ends");
  }

  Expression& expression_;
  const RegexMatch match_;
  const CharWriter& write_;
};

}  // namespace

Part add_regex(Expression& expression, const Regex& regex, RegexMatch match,
               const CharWriter& write) {
  return Writer(expression, match, write).at_edges(regex, {});
}

Grammar compile_regex(std::string_view text) {
  const Regex regex = parse_regex(text);
  Expression expression;
  const auto root = expression.add_rule("the regular expression");
  expression.define(root, add_regex(expression, regex, RegexMatch::whole,
                                    [&](const CharSet& set) { return expression.chars(set); }));
  return Grammar(expression.compile(root));
}

}  // namespace mixtral::constrain
