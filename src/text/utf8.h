#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mixtral {

/// Bytes of the UTF-8 character that `text` begins with: 1 to 4, or 0 when `text` is empty or does
/// not begin with a whole, valid one (RFC 3629: no overlong forms, no surrogates, at most
/// U+10FFFF).
size_t utf8_length(std::string_view text);

/// Whether `text` is whole characters throughout.
bool is_valid_utf8(std::string_view text);

/// How many bytes at the end of `text` begin a character whose rest may still follow (0 to 3).
size_t incomplete_utf8_tail(std::string_view text);

/// `text` with U+FFFD in place of each byte that is not part of a valid character.
std::string to_valid_utf8(std::string_view text);

}  // namespace mixtral
