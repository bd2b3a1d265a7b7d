#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serve/access.h"
#include "serve/api_error.h"
#include "serve/http.h"

namespace mixtral::serve {

/// Who may use a route.
enum class Access { with_key, administrator, open };

/// One path and method.
struct Route {
  std::string method, path;  // "GET", "/v1/models/{model}"; {…} takes one part of the path
  /// Answers now or later. What it throws becomes an answer with an error object.
  std::function<void(const HttpRequest&, const std::shared_ptr<Reply>&)> handler;
  Access access = Access::with_key;
  ErrorWriter error = openai_error;
};

/// Finds the route of a request, and refuses what nobody may send: unknown paths (404), other
/// methods (405), wrong keys (401), foreign hosts and sites (403), compressed bodies (415). A path
/// is the same with a slash at its end, and one under /v1 also without it.
class Router : public HttpHandler {
 public:
  explicit Router(AccessOptions options) : options_(std::move(options)) {}

  /// Before the server starts.
  void add(Route route);
  const std::vector<Route>& routes() const { return routes_; }

  std::optional<HttpResponse> refuse(const HttpHead& head) override;
  uint64_t most_body(const HttpHead& head) override;
  HttpResponse broken(int status, std::string_view reason) override;
  void handle(HttpRequest request, std::shared_ptr<Reply> reply) override;

 private:
  struct Found {
    const Route* route = nullptr;
    std::vector<std::string> parts;
    std::string allow;  // the methods of the path's routes; empty: there are none
    ErrorWriter error = openai_error;
  };
  Found find(const HttpHead& head) const;
  std::optional<HttpResponse> check(const HttpHead& head, const Found& found) const;
  HttpResponse preflight(const HttpHead& head, const Found& found) const;
  HttpHeaders common_headers(const HttpHead& head) const;

  AccessOptions options_;
  std::vector<Route> routes_;
};

}  // namespace mixtral::serve
