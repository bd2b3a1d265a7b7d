#pragma once

#include <string_view>

#include "serve/router.h"

namespace mixtral::serve {

/// The page's Content-Security-Policy: it loads and calls what its own server has, and nothing
/// else; no script stands in its text; no other page may frame it.
inline constexpr std::string_view kPagePolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// GET / is the page, and /page/NAME its other files. All are open without a key: they hold nothing
/// of the model, and ask for what they show with the key that they are given.
void add_page_routes(Router& router);
/// GET /openapi.json: the document of all routes.
void add_openapi_route(Router& router);

}  // namespace mixtral::serve
