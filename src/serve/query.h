#pragma once

#include <string>
#include <utility>
#include <vector>

#include "serve/http.h"

namespace mixtral::serve {

/// The names and values behind a target's '?', without "%XX". Throws ApiError 400 for what cannot
/// be decoded.
std::vector<std::pair<std::string, std::string>> query_of(const HttpHead& head);

}  // namespace mixtral::serve
