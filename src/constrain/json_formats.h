#pragma once

#include <string_view>

namespace mixtral::constrain {

/// A regular expression for a JSON schema's `format` ("date-time", "uuid"). Every text that it
/// matches is of the format. It matches all dates, times and addresses of their standards; of "uri"
/// and "uri-reference" the common ones. Null for an unknown format.
const char* format_expression(std::string_view name);
/// The names that are known, for errors.
std::string_view format_names();

}  // namespace mixtral::constrain
