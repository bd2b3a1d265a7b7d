#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/http.h"

namespace mixtral::serve {

/// Who may send what to a server.
struct AccessOptions {
  std::vector<std::string> keys;                // empty: none is asked for
  std::vector<std::string> administrator_keys;  // of what changes the server; empty: `keys` are
  std::vector<std::string> allowed_origins;     // of other sites whose pages may call
  bool loopback = true;                         // only a loopback Host is served
  uint64_t most_body = uint64_t{16} << 20;      // bytes
};

inline constexpr std::string_view kAllowedHeaders =
    "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, accept, "
    "openai-organization, openai-project, x-requested-with";

// All throw ApiError.

/// 403 where only loopback is served and Host is another name: a page of another site may have made
/// its name point here (DNS rebinding).
void check_host(const HttpHead& head, const AccessOptions& options);
/// 403 where another site's page sends something that changes or costs, and no key protects.
void check_site(const HttpHead& head, const AccessOptions& options);
/// 401 without a right key, as `Authorization: Bearer` or `x-api-key`.
void check_key(const HttpHead& head, const AccessOptions& options);
/// The same for what changes the server; 403 where there is no key at all to ask for.
void check_administrator(const HttpHead& head, const AccessOptions& options);
/// 415 for a compressed body, or one that is neither JSON nor of no type.
void check_content(const HttpHead& head);

/// Whether the request comes from a page of an origin that may read the answer.
bool is_allowed_origin(const HttpHead& head, const AccessOptions& options);

/// Text with each "%XX" as its byte; nothing where that is broken.
std::optional<std::string> percent_decoded(std::string_view text);
/// Compares in a time that does not depend on where the two differ.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace mixtral::serve
