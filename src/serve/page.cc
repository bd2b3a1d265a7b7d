#include "serve/page.h"

#include <algorithm>

#include "serve/embedded_files.h"

namespace mixtral::serve {
namespace {

constexpr std::string_view kDocument = "openapi.json";

HttpResponse file_response(const EmbeddedFile& file) {
  return {.headers = {{"Content-Type", std::string(file.content_type)},
                      {"Content-Security-Policy", std::string(kPagePolicy)},
                      {"X-Content-Type-Options", "nosniff"},
                      {"X-Frame-Options", "DENY"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cross-Origin-Opener-Policy", "same-origin"},
                      {"Cache-Control", "no-cache"}},
          .body = std::string(file.bytes)};
}

Route file_route(std::string path, const EmbeddedFile& file, Access access) {
  return {
      .method = "GET",
      .path = std::move(path),
      .handler = [&file](const HttpRequest& /*http*/,
                         const std::shared_ptr<Reply>& reply) { reply->send(file_response(file)); },
      .access = access};
}

}  // namespace

void add_page_routes(Router& router) {
  for (const EmbeddedFile& file : embedded_files())
    if (file.name != kDocument)
      router.add(file_route(file.name == "index.html" ? "/" : "/page/" + std::string(file.name),
                            file, Access::open));
}

void add_openapi_route(Router& router) {
  const EmbeddedFile& file = *std::ranges::find(embedded_files(), kDocument, &EmbeddedFile::name);
  router.add(file_route("/openapi.json", file, Access::with_key));
}

}  // namespace mixtral::serve
