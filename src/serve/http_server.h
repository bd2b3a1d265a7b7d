#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "serve/http.h"

namespace mixtral::serve {

/// Speaks HTTP/1.1 (RFC 9112) on one address, with a bound on everything that a client may send,
/// keep open or leave unread.
class HttpServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";
    uint16_t port = 8080;  // 0: any free one
    int threads = 4;
    size_t connections = 512;        // at once; those that wait longest go first
    uint32_t head_bytes = 32 << 10;  // of request line and headers
    // Of an answer, that wait for a slow reader beside its largest part.
    size_t unread_bytes = size_t{2} << 20;
    std::chrono::milliseconds first_head{std::chrono::seconds(30)};  // after connecting
    std::chrono::milliseconds idle{std::chrono::seconds(75)};        // between two requests
    std::chrono::milliseconds head{std::chrono::seconds(20)};        // from its first byte on
    std::chrono::milliseconds stalled{
        std::chrono::seconds(30)};                             // without a byte of body or answer
    std::chrono::milliseconds body{std::chrono::minutes(10)};  // all of one
  };
  /// Binds to the address. Throws Error naming it where that fails.
  explicit HttpServer(const Options& options);
  /// Closes every connection.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  /// Begins to serve. `handler` must outlive this.
  void start(HttpHandler& handler);
  /// Takes no more connections, closes those without a request, and lets each of the others end
  /// with the answer that is under way.
  void finish();
  /// Calls the handler no more once this returns. Answers that are still to come go nowhere.
  void stop();
  /// Connections that are open.
  size_t connections() const;

  uint16_t port() const;
  bool loopback() const;        // whether only this machine can connect
  std::string address() const;  // "127.0.0.1:8080", "[::1]:8080"

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mixtral::serve
