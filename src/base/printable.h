#pragma once

#include <string>
#include <string_view>

namespace mixtral {

/// Text from outside (names, values, file contents) as a terminal may show it: control characters,
/// line separators, zero-width and bidirectional controls become visible escapes ("\n", "\x1b",
/// "\u202e"), and so do bytes that are not UTF-8. Escaping twice changes nothing.
std::string escaped(std::string_view text);

/// What an error quotes of such text: the same of its first 80 bytes, cut between characters.
std::string printable(std::string_view text);

}  // namespace mixtral
