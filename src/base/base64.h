#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mixtral {

/// Bytes as base64 (RFC 4648, with padding).
std::string base64(std::string_view bytes);
/// The bytes that such a text stands for; nothing where it is not base64.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace mixtral
