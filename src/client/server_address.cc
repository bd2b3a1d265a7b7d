#include "client/server_address.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"

namespace mixtral::client {
namespace {

constexpr std::string_view kScheme = "http://";

Error bad_url(std::string_view url, std::string_view reason) {
  return Error(fmt::format("{}: {}; expected a URL such as http://127.0.0.1:8080/v1",
                           printable(url), reason));
}

/// Whether a text can stand in a request's first lines.
bool is_plain(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c < '\x7f'; });
}

}  // namespace

std::string ServerAddress::host_header() const {
  const bool bare = host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", bare ? "[" : "", host, bare ? "]" : "", port);
}

ServerAddress parse_address(std::string_view url) {
  if (url.starts_with("https://"))
    throw bad_url(url, "TLS is not spoken here; name the server itself, or a plain proxy to it");
  if (!url.starts_with(kScheme)) throw bad_url(url, "no HTTP server's URL");
  if (!is_plain(url)) throw bad_url(url, "blanks and letters beyond ASCII have no place in it");
  std::string_view rest = url.substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  ServerAddress address{.prefix = std::string(rest.substr(slash))};
  rest = rest.substr(0, slash);
  if (address.prefix.find_first_of("?#") != std::string::npos)
    throw bad_url(url, "a base URL has neither query nor fragment");
  while (address.prefix.ends_with('/')) address.prefix.pop_back();
  if (address.prefix.empty()) address.prefix = "/v1";
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t end = rest.find(']');
    if (end == rest.npos) throw bad_url(url, "the bracket does not close");
    address.host = std::string(rest.substr(1, end - 1));
    port = rest.substr(end + 1);
  } else {
    const size_t colon = std::min(rest.find(':'), rest.size());
    address.host = std::string(rest.substr(0, colon));
    port = rest.substr(colon);
  }
  if (address.host.empty() || address.host.find('@') != std::string::npos)
    throw bad_url(url, "no host");
  if (port.empty()) return address;
  const auto number = parse_integer(port.substr(1));
  if (port.front() != ':' || !number || *number < 1 || *number > 65535)
    throw bad_url(url, "the port is no number from 1 to 65535");
  address.port = static_cast<uint16_t>(*number);
  return address;
}

}  // namespace mixtral::client
