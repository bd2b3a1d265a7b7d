#include "serve/http_head.h"

#include <fmt/format.h>

#include <boost/beast/http/status.hpp>
#include <ctime>
#include <string_view>

namespace mixtral::serve {
namespace {

namespace http = boost::beast::http;

std::string now_in_words() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[64];
  const size_t size = std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text, size};
}

/// A header's value without what would end its line.
std::string one_line(std::string_view value) {
  std::string line(value);
  for (char& c : line)
    if (c == '\r' || c == '\n' || c == '\0') c = ' ';
  return line;
}
}  // namespace

std::string write_head(const HttpResponse& response, BodyFraming framing, bool close) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(response.status));
  std::string head = fmt::format("HTTP/1.1 {} {}\r\n", response.status,
                                 std::string_view(reason.data(), reason.size()));
  for (const auto& [name, value] : response.headers)
    head += fmt::format("{}: {}\r\n", name, one_line(value));
  head += fmt::format("Date: {}\r\n", now_in_words());
  if (framing == BodyFraming::chunks) head += "Transfer-Encoding: chunked\r\n";
  if (framing == BodyFraming::length && response.status != 204)
    head += fmt::format("Content-Length: {}\r\n", response.body.size());
  if (close || framing == BodyFraming::until_close) head += "Connection: close\r\n";
  return head + "\r\n";
}

}  // namespace mixtral::serve
