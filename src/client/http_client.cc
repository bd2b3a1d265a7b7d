#include "client/http_client.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace mixtral::client {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;

constexpr uint64_t kMostAnswerBytes = uint64_t{64} << 20;  // of one answer

Error failure(const error_code& error) {
  if (error == beast::error::timeout) return Error("timeout");
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error == net::error::eof || error == net::error::connection_reset ||
      error == net::error::broken_pipe)
    return Error("the server closed the connection");
  return Error(error.message());
}

}  // namespace

HttpClient::HttpClient(net::any_io_executor executor, ServerAddress address, std::string key,
                       std::chrono::milliseconds timeout)
    : executor_(std::move(executor)),
      address_(std::move(address)),
      key_(std::move(key)),
      timeout_(timeout) {}

net::awaitable<std::unique_ptr<HttpClient::Connection>> HttpClient::connect() {
  error_code error;
  if (endpoints_.empty()) {
    tcp::resolver resolver(executor_);
    const std::string port = std::to_string(address_.port);
    endpoints_ = co_await resolver.async_resolve(address_.host, port,
                                                 net::redirect_error(net::use_awaitable, error));
    if (error) throw Error("the host is unknown");
  }
  auto connection = std::make_unique<Connection>(executor_);
  connection->stream.expires_after(timeout_);
  co_await connection->stream.async_connect(endpoints_,
                                            net::redirect_error(net::use_awaitable, error));
  if (error == beast::error::timeout) throw failure(error);
  if (error) throw Error("no connection");
  error_code ignored;
  std::ignore = connection->stream.socket().set_option(tcp::no_delay(true), ignored);
  co_return connection;
}

net::awaitable<int> HttpClient::exchange(Connection& connection, const Call& call,
                                         const OnPart& on_part, bool& begun, bool& reusable) {
  http::request<http::string_body> request;
  request.method_string(call.method);
  request.target(address_.prefix + call.route);
  request.version(11);
  request.set(http::field::host, address_.host_header());
  request.set(http::field::user_agent, "mixtral");
  request.set(http::field::accept, "*/*");
  if (!key_.empty()) request.set(http::field::authorization, "Bearer " + key_);
  if (!call.body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = call.body;
  if (!call.body.empty()) request.prepare_payload();

  error_code error;
  connection.stream.expires_after(timeout_);
  co_await http::async_write(connection.stream, request,
                             net::redirect_error(net::use_awaitable, error));
  if (error) throw failure(error);
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMostAnswerBytes);
  co_await http::async_read_header(connection.stream, connection.buffer, parser,
                                   net::redirect_error(net::use_awaitable, error));
  if (error) throw failure(error);
  begun = true;
  const int status = parser.get().result_int();
  // Not eager: an eager parser gives nothing of a body before the whole of it has come.
  parser.eager(false);
  bool wanted = true;
  while (wanted && !parser.is_done()) {
    co_await http::async_read_some(connection.stream, connection.buffer, parser,
                                   net::redirect_error(net::use_awaitable, error));
    if (error) throw failure(error);
    std::string& body = parser.get().body();
    if (!body.empty()) wanted = on_part(status, body);
    body.clear();
  }
  reusable = parser.is_done() && parser.keep_alive();
  co_return status;
}

net::awaitable<int> HttpClient::send(const Call& call, const OnPart& on_part) {
  for (int attempt = 0;; ++attempt) {
    std::unique_ptr<Connection> connection;
    const bool kept = !idle_.empty() && attempt == 0;
    if (kept) {
      connection = std::move(idle_.back());
      idle_.pop_back();
    } else {
      connection = co_await connect();
    }
    bool begun = false, reusable = false;
    try {
      const int status = co_await exchange(*connection, call, on_part, begun, reusable);
      connection->buffer.shrink_to_fit();
      if (reusable) idle_.push_back(std::move(connection));
      co_return status;
    } catch (const Error&) {
      if (!kept || begun) throw;
    }
  }
}

}  // namespace mixtral::client
