// Bytes on a connection: the server answers with HTTP or ends the connection, and goes on serving.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "serve/http_server.h"
#include "tests/serve/client.h"

namespace {

using namespace mixtral::serve;

class Echo : public HttpHandler {
 public:
  std::optional<HttpResponse> refuse(const HttpHead& head) override {
    CHECK(!head.method.empty() && !(head.chunked && head.body_length));
    return std::nullopt;
  }
  uint64_t most_body(const HttpHead&) override { return 10'000; }
  HttpResponse broken(int status, std::string_view reason) override {
    CHECK(status >= 400 && !reason.empty());
    return {.status = status, .body = std::string(reason)};
  }
  void handle(HttpRequest request, std::shared_ptr<Reply> reply) override {
    CHECK(request.body.size() <= 10'000);
    reply->send({.body = request.body});
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Echo echo;
  static HttpServer* const server = [] {
    auto* made = new HttpServer({.port = 0, .threads = 1});  // as long as the process
    made->start(echo);
    return made;
  }();
  mixtral::testing::Client client(server->port());
  client.send({reinterpret_cast<const char*>(data), size});
  client.finish_sending();
  const std::string all = client.rest();
  CHECK(all.empty() || all.starts_with("HTTP/1.1 "));
  return 0;
}
