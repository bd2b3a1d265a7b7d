#pragma once

#include <string>
#include <string_view>

namespace mixtral {

/// Text from outside as HTML may hold it, in a text or an attribute: markup is escaped, and control
/// characters but line ends and tabs become "?".
std::string html_escaped(std::string_view text);

}  // namespace mixtral
