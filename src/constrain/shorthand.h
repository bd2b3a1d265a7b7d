#pragma once

#include <optional>
#include <string_view>

#include "constrain/char_set.h"

namespace mixtral::constrain {

/// A class of characters on which dialects disagree.
struct Shorthand {
  CharSet narrow;  // the characters that are in it by all of them
  CharSet wide;    // by any of them
  Shorthand complement() const { return {wide.complement(), narrow.complement()}; }
};

/// \d, \w, \s and their complements, by their letter; nothing for another letter.
std::optional<Shorthand> shorthand(char letter);
/// A Unicode property, as in \p{L}: L, Lu, Ll, Lt, M, N, Nd, P, or its long name; nothing for
/// others.
std::optional<CharSet> unicode_property(std::string_view name);

}  // namespace mixtral::constrain
