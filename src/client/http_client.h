// Boost's headers take long to compile: only what speaks HTTP includes this one.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/server_address.h"

namespace mixtral::client {

/// Sends requests to one server over connections that it keeps (RFC 9112). Used on one thread.
class HttpClient {
 public:
  struct Call {
    std::string method = "GET";
    std::string route;  // behind the server's prefix
    std::string body;   // JSON; empty: none
  };
  /// Is called with each part of an answer's body; false: enough of it.
  using OnPart = std::function<bool(int status, std::string_view part)>;

  HttpClient(boost::asio::any_io_executor executor, ServerAddress address, std::string key,
             std::chrono::milliseconds timeout);

  /// Sends a request and returns the answer's status when its body has ended, or nobody wants more
  /// of it. A kept connection that the server has closed meanwhile is replaced by a new one once.
  /// Throws Error with few words ("no connection", "timeout") that errors can be counted by. Both
  /// arguments must live until then, in variables: GCC 12 destroys temporaries of a co_await twice.
  boost::asio::awaitable<int> send(const Call& call, const OnPart& on_part);

 private:
  struct Connection {
    explicit Connection(const boost::asio::any_io_executor& executor) : stream(executor) {}
    boost::beast::tcp_stream stream;
    boost::beast::flat_buffer buffer;
  };
  boost::asio::awaitable<std::unique_ptr<Connection>> connect();
  boost::asio::awaitable<int> exchange(Connection& connection, const Call& call,
                                       const OnPart& on_part, bool& begun, bool& reusable);

  boost::asio::any_io_executor executor_;
  ServerAddress address_;
  std::string key_;
  std::chrono::milliseconds timeout_;
  boost::asio::ip::tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;
};

}  // namespace mixtral::client
