#pragma once

#include <string>

#include "serve/http.h"

namespace mixtral::serve {

/// How an answer's body is sent.
enum class BodyFraming { length, chunks, until_close };

/// An answer's status line and headers: "HTTP/1.1 200 OK\r\n…\r\n\r\n".
std::string write_head(const HttpResponse& response, BodyFraming framing, bool close);

}  // namespace mixtral::serve
