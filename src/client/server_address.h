#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mixtral::client {

/// Where a server is, and where its routes begin.
struct ServerAddress {
  std::string host;  // a name or an address, IPv6 without brackets
  uint16_t port = 80;
  std::string prefix;  // before every route: "/v1"

  /// What a request names as Host: "127.0.0.1:8080", "[::1]:8080".
  std::string host_header() const;
};

/// Reads a URL such as OpenAI's clients take as their base: "http://HOST:PORT/v1". Without a path
/// it is /v1. Throws Error for anything but plain HTTP.
ServerAddress parse_address(std::string_view url);

}  // namespace mixtral::client
