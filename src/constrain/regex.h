#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "constrain/char_set.h"
#include "constrain/expression.h"

namespace mixtral::constrain {

/// A regular expression as a tree.
struct Regex {
  enum class Kind { set, sequence, choice, repeat, start, end };  // the last two are anchors
  Kind kind = Kind::sequence;
  CharSet set = {};
  std::vector<Regex> parts = {};
  uint64_t least = 0;  // of repeat
  std::optional<uint64_t> most = {};
};

/// Reads what the common dialects agree on: . [] \d \w \s \p{} () (?:) (?<name>) | * + ? {m,n} ^ $,
/// and escapes. Lazy quantifiers mean the same here. Where dialects disagree on which characters
/// belong to a class, those that belong to it in all of them are taken: \d, \w and \s are ASCII,
/// and
/// \D, \W and \S have nothing that Unicode counts among these. Throws Error, which says at which
/// character.
Regex parse_regex(std::string_view expression);

/// Whether the whole text has to match, or any part of it (as JSON schema's `pattern`).
enum class RegexMatch { whole, part };

/// How a character of the texts is written.
using CharWriter = std::function<Expression::Part(const CharSet&)>;

/// The texts that match. Anchors may stand at the ends of alternatives; elsewhere, Error.
Expression::Part add_regex(Expression& expression, const Regex& regex, RegexMatch match,
                           const CharWriter& write);

}  // namespace mixtral::constrain
