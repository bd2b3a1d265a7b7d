#pragma once

#include <span>
#include <string_view>

namespace mixtral::serve {

/// A file that the program carries.
struct EmbeddedFile {
  std::string_view name;          // "page.js"
  std::string_view content_type;  // of HTTP
  std::string_view bytes;
};

/// The files of the web page (src/serve/page), and openapi.json.
std::span<const EmbeddedFile> embedded_files();

}  // namespace mixtral::serve
