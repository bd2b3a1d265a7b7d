#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixtral::serve {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

/// What comes before a request's body.
struct HttpHead {
  std::string method, target;           // as sent: "POST", "/v1/models?x=1"
  HttpHeaders headers;                  // in order
  std::optional<uint64_t> body_length;  // nothing: in chunks, or no body
  bool chunked = false;
  std::string peer;  // the client's address, without the port

  /// The value of the first header of that name, in any case of letters; empty: there is none.
  std::string_view header(std::string_view name) const;
  /// How many headers have that name.
  size_t count(std::string_view name) const;
  /// The target without its query.
  std::string_view path() const;
};

struct HttpRequest {
  HttpHead head;
  std::string body;
  std::vector<std::string> parts;  // of the path: what stood at the route's {…}
};

/// An answer. Content-Length, Transfer-Encoding, Connection and Date are the server's own.
struct HttpResponse {
  int status = 200;
  HttpHeaders headers;
  std::string body;
};

/// Where one request's answer goes: whole (send), or in parts (begin, write, end). Its functions
/// may be called from any thread, one at a time, also later than the handler returns; they never
/// block or throw. When the last owner lets go before the answer is complete, the connection ends.
class Reply {
 public:
  virtual ~Reply() = default;
  virtual void send(HttpResponse response) = 0;
  /// The status and headers of an answer whose body follows in parts.
  virtual void begin(HttpResponse head) = 0;
  /// A part of the body, which arrives whole or not at all. Returns false when nobody will read it:
  /// the client is gone, or reads so slowly that more than the server's bound waits for it.
  virtual bool write(std::string_view part) = 0;
  virtual void end() = 0;
  /// `gone` is called once, on any thread, when the client leaves before the answer is complete (at
  /// once where it has left already).
  virtual void on_gone(std::function<void()> gone) = 0;
};

/// What a server asks of the program behind it. Called on several threads.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// Looks at a request before its body is read. An answer refuses it.
  virtual std::optional<HttpResponse> refuse(const HttpHead& head) = 0;
  /// The most bytes that the body of this request may have.
  virtual uint64_t most_body(const HttpHead& head) = 0;
  /// The answer to what is no HTTP (400), has a body above the limit (413), headers above theirs
  /// (431) or comes too slowly (408).
  virtual HttpResponse broken(int status, std::string_view reason) = 0;
  /// Answers, now or later.
  virtual void handle(HttpRequest request, std::shared_ptr<Reply> reply) = 0;
};

/// Whether two names are equal but for the case of ASCII letters.
bool equal_ignoring_case(std::string_view a, std::string_view b);

}  // namespace mixtral::serve
