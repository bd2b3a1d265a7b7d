// Boost's headers take long to compile: only the files that speak HTTP include this one.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "serve/http.h"
#include "serve/http_server.h"

namespace mixtral::serve {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;
using Clock = std::chrono::steady_clock;
using Strand = net::strand<net::io_context::executor_type>;
using Socket = net::basic_stream_socket<tcp, Strand>;
using Timer = net::basic_waitable_timer<Clock, net::wait_traits<Clock>, Strand>;

inline constexpr size_t kReadBytes = 16 << 10;    // at once
inline constexpr size_t kBufferBytes = 64 << 10;  // read, and not looked at yet

class Session;

/// The server that a session belongs to.
struct SessionHost {
  explicit SessionHost(const HttpServer::Options& given) : options(given) {}
  virtual ~SessionHost() = default;
  SessionHost(const SessionHost&) = delete;
  SessionHost& operator=(const SessionHost&) = delete;
  /// The session has ended. From any thread, and maybe twice.
  virtual void remove(Session* session) = 0;

  const HttpServer::Options options;
  HttpHandler* handler = nullptr;
  std::atomic<bool> finishing = false;  // each session ends with the answer that is under way
};

/// One connection. All but what its mutex guards is used on its strand alone.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(SessionHost& host, Socket socket)
      : host_(host),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        buffer_(kBufferBytes) {
    error_code ignored;
    std::ignore = socket_.set_option(tcp::no_delay(true), ignored);
    const tcp::endpoint peer = socket_.remote_endpoint(ignored);
    if (!ignored) peer_ = peer.address().to_string();
    waiting_since_ = Clock::now();
  }
  ~Session() { host_.remove(this); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void start() {
    net::post(socket_.get_executor(), [self = shared_from_this()] {
      self->arm(self->host_.options.first_head);
      self->read();
    });
  }

  /// Whether no request has begun, and since when. From any thread.
  bool waits() const { return waits_; }
  Clock::time_point waiting_since() const { return waiting_since_.load(); }
  /// Ends the connection, at once or after the answer that is under way. From any thread.
  void close_soon(bool at_once) {
    net::post(socket_.get_executor(), [self = shared_from_this(), at_once] {
      if (at_once || self->phase_ == Phase::waiting)
        self->drop();
      else
        self->keep_alive_ = false;
    });
  }

  // Of Reply, from any thread.
  void send(const HttpResponse& response);
  void begin(const HttpResponse& response);
  bool write(std::string_view part);
  void end();
  void abandon();
  void on_gone(std::function<void()> gone);

 private:
  enum class Phase { waiting, head, body, answering, closing, closed };
  using Parser = http::request_parser<http::string_body>;

  void read();
  void on_read(size_t size);
  void advance();
  bool parse(bool eager);
  void on_head();
  void on_request();
  void refuse(const HttpResponse& response, bool close);
  void broken(int status, std::string_view reason) {
    refuse(host_.handler->broken(status, reason), true);
  }
  void answer_begins();
  void post_flush();
  void flush();
  void write_some();
  void next_request();
  void linger();
  void lost();
  void drop();
  void arm(std::chrono::milliseconds time);
  void on_timeout();

  SessionHost& host_;
  Socket socket_;
  Timer timer_;
  // Read into `incoming_`, and moved to `buffer_` when it has come: requests that wait there may be
  // taken out while a read is under way.
  std::array<char, kReadBytes> incoming_;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  HttpHead head_;
  std::optional<HttpResponse> refusal_;  // that is sent when the body has been skipped
  std::string peer_;
  Phase phase_ = Phase::waiting;
  bool reading_ = false, writing_ = false;
  std::atomic<bool> keep_alive_ = true;
  bool head_only_ = false, old_client_ = false;  // HEAD; HTTP/1.0
  uint64_t timer_round_ = 0;
  Clock::time_point body_began_;
  size_t drained_ = 0;
  std::string in_flight_;
  size_t written_ = 0;  // of in_flight_
  std::atomic<bool> waits_ = true;
  std::atomic<Clock::time_point> waiting_since_;

  std::mutex mutex_;
  std::string outbox_;  // to be written
  size_t unread_ = 0;   // bytes of outbox_ and in_flight_
  size_t largest_ = 0;  // of the answer's parts
  bool flush_posted_ = false;
  bool answering_ = false;  // a request is with the handler
  bool complete_ = false;   // its answer is
  bool gone_ = false;
  std::function<void()> on_gone_;
};

}  // namespace mixtral::serve
