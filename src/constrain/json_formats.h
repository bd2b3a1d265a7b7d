#pragma once

#include <string_view>

namespace mixtral::constrain {

/// A regular expression whose texts all are of a JSON schema's `format` ("date-time", "uuid"): each
/// that RFC 3339 and the others allow, or, for "uri" and the like, the common ones. Null where the
/// format is not known.
const char* format_expression(std::string_view name);
/// The names that are known, for errors.
std::string_view format_names();

}  // namespace mixtral::constrain
