#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mixtral {

/// The number that the whole text writes in decimal, or nothing: for another base, blanks, anything
/// behind it, or a value out of range. "010" is ten.
std::optional<int64_t> parse_integer(std::string_view text);
std::optional<uint64_t> parse_unsigned(std::string_view text);
/// The same with a fraction and an exponent where there are, and "inf" and "nan".
std::optional<double> parse_number(std::string_view text);

}  // namespace mixtral
