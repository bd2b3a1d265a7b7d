#include "serve/access.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/printable.h"
#include "serve/api_error.h"

namespace mixtral::serve {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// "localhost" of "localhost:8080", "[::1]" of "[::1]:8080".
std::string_view without_port(std::string_view host) {
  if (host.starts_with('[')) return host.substr(0, host.find(']') + 1);
  return host.substr(0, host.find(':'));
}

bool is_loopback_name(std::string_view host) {
  host = without_port(host);
  if (host.ends_with('.')) host.remove_suffix(1);
  if (equal_ignoring_case(host, "localhost") || host == "[::1]") return true;
  // 127.0.0.0/8, written as four numbers: "127.evil.example" is a name.
  return host.starts_with("127.") &&
         std::ranges::all_of(host, [](char c) { return c == '.' || (c >= '0' && c <= '9'); }) &&
         std::ranges::count(host, '.') == 3;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_value(text[i + 1]), low = hex_value(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned different = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i)
    different |= static_cast<unsigned char>(a[i]) ^
                 static_cast<unsigned char>(b.empty() ? '\0' : b[i % b.size()]);
  return different == 0;
}

void check_host(const HttpHead& head, const AccessOptions& options) {
  const std::string_view host = head.header("Host");
  if (!options.loopback || (host.empty() && head.count("Host") == 0)) return;
  if (!is_loopback_name(host))
    throw ApiError(403, fmt::format("Host is '{}', but only this machine is served; use localhost "
                                    "or 127.0.0.1",
                                    printable(host)));
}

bool is_allowed_origin(const HttpHead& head, const AccessOptions& options) {
  const std::string_view origin = head.header("Origin");
  return !origin.empty() &&
         std::ranges::any_of(options.allowed_origins, [&](const std::string& allowed) {
           return allowed == "*" || equal_ignoring_case(allowed, origin);
         });
}

void check_site(const HttpHead& head, const AccessOptions& options) {
  if (!options.keys.empty() || head.method == "GET" || head.method == "HEAD") return;
  if (is_allowed_origin(head, options)) return;
  const std::string_view origin = head.header("Origin"), site = head.header("Sec-Fetch-Site");
  const bool own = origin == fmt::format("http://{}", head.header("Host")) ||
                   origin == fmt::format("https://{}", head.header("Host"));
  const bool foreign =
      (!origin.empty() && !own) || site == "cross-site" || (origin.empty() && site == "same-site");
  if (foreign)
    throw ApiError(403, fmt::format("a page of {} may not call this server; serve with a key, or "
                                    "allow that origin",
                                    origin.empty() ? "another site" : printable(origin)));
}

namespace {

/// 401 unless the request sends one of the keys.
void require_key(const HttpHead& head, const std::vector<std::string>& keys) {
  std::string_view given = trimmed(head.header("x-api-key"));
  const std::string_view authorization = trimmed(head.header("Authorization"));
  if (given.empty()) {
    const size_t space = authorization.find(' ');
    if (space != std::string_view::npos &&
        equal_ignoring_case(authorization.substr(0, space), "Bearer"))
      given = trimmed(authorization.substr(space));
  }
  bool right = false;
  for (const std::string& key : keys) right |= equal_in_constant_time(key, given);
  if (right && !given.empty()) return;
  throw ApiError(401,
                 given.empty() ? "this server asks for a key; send it as `Authorization: Bearer "
                                 "KEY` or `x-api-key: KEY`"
                               : "the key is not one of this server's",
                 {}, "invalid_api_key", {{"WWW-Authenticate", "Bearer"}});
}

}  // namespace

void check_key(const HttpHead& head, const AccessOptions& options) {
  if (options.keys.empty()) return;
  std::vector<std::string> keys = options.keys;
  keys.insert(keys.end(), options.administrator_keys.begin(), options.administrator_keys.end());
  require_key(head, keys);
}

void check_administrator(const HttpHead& head, const AccessOptions& options) {
  const auto& keys = options.administrator_keys.empty() ? options.keys : options.administrator_keys;
  if (keys.empty())
    throw ApiError(403, "what changes the server needs a key, and this one was started without any",
                   {}, "no_administrator_key");
  require_key(head, keys);
}

void check_content(const HttpHead& head) {
  const std::string_view encoding = trimmed(head.header("Content-Encoding"));
  if (!encoding.empty() && !equal_ignoring_case(encoding, "identity"))
    throw ApiError(
        415, fmt::format("the body is compressed ({}); send it as it is", printable(encoding)));
  std::string_view type = head.header("Content-Type");
  type = trimmed(type.substr(0, type.find(';')));
  if (head.method != "POST" || type.empty() || equal_ignoring_case(type, "application/json") ||
      (type.size() > 5 && equal_ignoring_case(type.substr(type.size() - 5), "+json")))
    return;
  // Curl's default for -d; a form of another site's page has been refused by its origin.
  if (equal_ignoring_case(type, "application/x-www-form-urlencoded") ||
      equal_ignoring_case(type, "text/json"))
    return;
  throw ApiError(415,
                 fmt::format("Content-Type is '{}', expected application/json", printable(type)));
}

}  // namespace mixtral::serve
