#include "serve/router.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "base/printable.h"
#include "serve/access.h"

namespace mixtral::serve {
namespace {

/// The parts of a path between slashes, without "%XX": nothing for what cannot be decoded. A slash
/// at the end counts for nothing.
std::optional<std::vector<std::string>> parts_of(std::string_view path) {
  std::vector<std::string> parts;
  if (!path.starts_with('/')) return std::nullopt;
  path.remove_prefix(1);
  if (path.ends_with('/')) path.remove_suffix(1);
  while (!path.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    const auto part = percent_decoded(path.substr(0, slash));
    if (!part) return std::nullopt;
    parts.push_back(*part);
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  return parts;
}

bool is_variable(const std::string& part) { return part.starts_with('{'); }

/// What stands at a pattern's variables, or nothing where the parts do not fit it.
std::optional<std::vector<std::string>> match(const std::vector<std::string>& pattern,
                                              const std::vector<std::string>& parts) {
  if (pattern.size() != parts.size()) return std::nullopt;
  std::vector<std::string> found;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (is_variable(pattern[i]))
      found.push_back(parts[i]);
    else if (pattern[i] != parts[i])
      return std::nullopt;
  }
  return found;
}

std::string joined(const std::set<std::string>& methods) {
  return fmt::format("{}", fmt::join(methods, ", "));
}

}  // namespace

void Router::add(Route route) {
  CHECK(parts_of(route.path).has_value());
  routes_.push_back(std::move(route));
}

Router::Found Router::find(const HttpHead& head) const {
  Found found;
  const auto parts = parts_of(head.path());
  if (!parts) return found;
  std::set<std::string> methods;
  for (const Route& route : routes_) {
    std::vector<std::string> pattern = *parts_of(route.path);
    auto at = match(pattern, *parts);
    if (!at && !pattern.empty() && pattern.front() == "v1") {
      pattern.erase(pattern.begin());
      at = match(pattern, *parts);
    }
    if (!at) continue;
    methods.insert(route.method);
    if (route.method == "GET") methods.insert("HEAD");
    found.error = route.error;
    const bool fits =
        route.method == head.method || (route.method == "GET" && head.method == "HEAD");
    if (fits && found.route == nullptr) {
      found.route = &route;
      found.parts = std::move(*at);
    }
  }
  if (!methods.empty()) {
    methods.insert("OPTIONS");
    found.allow = joined(methods);
  }
  if (found.route != nullptr) found.error = found.route->error;
  return found;
}

/// The answer to what no handler is asked about.
std::optional<HttpResponse> Router::check(const HttpHead& head, const Found& found) const {
  const Access access = found.route != nullptr ? found.route->access : Access::with_key;
  check_host(head, options_);
  if (head.method == "OPTIONS" && !found.allow.empty()) return preflight(head, found);
  check_site(head, options_);
  if (access == Access::with_key) check_key(head, options_);
  if (access == Access::administrator) check_administrator(head, options_);
  if (found.allow.empty())
    throw ApiError(404, fmt::format("there is nothing at {}", printable(head.path())));
  if (found.route == nullptr)
    throw ApiError(405,
                   fmt::format("{} is not possible at {}; use {}", printable(head.method),
                               printable(head.path()), found.allow),
                   {}, {}, {{"Allow", found.allow}});
  check_content(head);
  return std::nullopt;
}

HttpResponse Router::preflight(const HttpHead& head, const Found& found) const {
  HttpResponse response{.status = 204, .headers = {{"Allow", found.allow}}};
  if (!is_allowed_origin(head, options_)) return response;
  response.headers.insert(response.headers.end(),
                          {{"Access-Control-Allow-Methods", found.allow},
                           {"Access-Control-Allow-Headers", std::string(kAllowedHeaders)},
                           {"Access-Control-Max-Age", "600"}});
  return response;
}

HttpHeaders Router::common_headers(const HttpHead& head) const {
  HttpHeaders headers{{"X-Content-Type-Options", "nosniff"}};
  if (options_.allowed_origins.empty()) return headers;
  headers.emplace_back("Vary", "Origin");
  if (is_allowed_origin(head, options_)) {
    headers.emplace_back("Access-Control-Allow-Origin", std::string(head.header("Origin")));
    headers.emplace_back("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate");
  }
  return headers;
}

namespace {

void append(HttpHeaders& headers, const HttpHeaders& more) {
  headers.insert(headers.end(), more.begin(), more.end());
}

/// Adds headers to the answer.
class ReplyWithHeaders : public Reply {
 public:
  ReplyWithHeaders(std::shared_ptr<Reply> reply, HttpHeaders headers)
      : reply_(std::move(reply)), headers_(std::move(headers)) {}
  void send(HttpResponse response) override {
    append(response.headers, headers_);
    reply_->send(std::move(response));
  }
  void begin(HttpResponse head) override {
    append(head.headers, headers_);
    reply_->begin(std::move(head));
  }
  bool write(std::string_view part) override { return reply_->write(part); }
  void end() override { reply_->end(); }
  void on_gone(std::function<void()> gone) override { reply_->on_gone(std::move(gone)); }

 private:
  std::shared_ptr<Reply> reply_;
  HttpHeaders headers_;
};

}  // namespace

std::optional<HttpResponse> Router::refuse(const HttpHead& head) {
  const Found found = find(head);
  std::optional<HttpResponse> response;
  try {
    response = check(head, found);
  } catch (...) {
    response = found.error(current_error());
  }
  if (response) append(response->headers, common_headers(head));
  return response;
}

uint64_t Router::most_body(const HttpHead&) { return options_.most_body; }

HttpResponse Router::broken(int status, std::string_view reason) {
  HttpResponse response = openai_error(ApiError(status, std::string(reason)));
  append(response.headers, {{"X-Content-Type-Options", "nosniff"}});
  return response;
}

void Router::handle(HttpRequest request, std::shared_ptr<Reply> reply) {
  const Found found = find(request.head);
  CHECK(found.route != nullptr);
  request.parts = found.parts;
  const auto answer =
      std::make_shared<ReplyWithHeaders>(std::move(reply), common_headers(request.head));
  try {
    found.route->handler(request, answer);
  } catch (...) {
    answer->send(found.error(current_error()));
  }
}

}  // namespace mixtral::serve
