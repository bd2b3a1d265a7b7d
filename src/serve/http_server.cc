// The only file that includes Boost: its headers take long to compile. Beast parses requests; all
// else (when to read, what to write, how long to wait) is here.
#include "serve/http_server.h"

#include <fmt/format.h>

#include <algorithm>
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
#include <ctime>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "base/error.h"

namespace mixtral::serve {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;
using Clock = std::chrono::steady_clock;
using Strand = net::strand<net::io_context::executor_type>;
using Socket = net::basic_stream_socket<tcp, Strand>;
using Timer = net::basic_waitable_timer<Clock, net::wait_traits<Clock>, Strand>;
using Acceptor = net::basic_socket_acceptor<tcp, Strand>;

constexpr size_t kReadBytes = 16 << 10;       // at once
constexpr size_t kBufferBytes = 64 << 10;     // read, and not looked at yet
constexpr uint64_t kSkippedBody = 64 << 10;   // of a refused request, to keep its connection
constexpr size_t kDrained = size_t{1} << 20;  // dropped after a refusal, so that it can be read
constexpr auto kLinger = std::chrono::seconds(2);

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

std::string chunk(std::string_view part) {
  return fmt::format("{:x}\r\n{}\r\n", part.size(), part);
}

class Session;

/// The connections of one server.
class Server {
 public:
  explicit Server(const HttpServer::Options& given)
      : options(given),
        acceptor_(net::make_strand(io_.get_executor())),
        pause_(acceptor_.get_executor()) {
    bind();
  }
  ~Server() { stop(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void start(HttpHandler& answerer);
  void finish();
  void stop() {
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  void remove(Session* session) {
    const std::lock_guard lock(mutex_);
    sessions_.erase(session);
  }
  size_t connections() const {
    const std::lock_guard lock(mutex_);
    return sessions_.size();
  }
  tcp::endpoint endpoint() const { return endpoint_; }
  bool finishing() const { return finishing_; }

  const HttpServer::Options options;
  HttpHandler* handler = nullptr;

 private:
  void bind();
  void accept();
  void add(Socket socket);

  // Before what owns sessions, which are taken out as they end.
  mutable std::mutex mutex_;
  std::set<Session*> sessions_;
  net::io_context io_;
  Acceptor acceptor_;
  Timer pause_;  // after a failure to accept
  tcp::endpoint endpoint_;
  std::vector<std::thread> threads_;
  std::atomic<bool> finishing_ = false;
};

/// One connection. All but what its mutex guards is used on its strand alone.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Server& server, Socket socket)
      : server_(server),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        buffer_(kBufferBytes) {
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    const tcp::endpoint peer = socket_.remote_endpoint(ignored);
    if (!ignored) peer_ = peer.address().to_string();
    waiting_since_ = Clock::now();
  }
  ~Session() { server_.remove(this); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void start() {
    net::post(socket_.get_executor(), [self = shared_from_this()] {
      self->arm(self->server_.options.first_head);
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
  void refuse(HttpResponse response, bool close);
  void broken(int status, std::string_view reason) {
    refuse(server_.handler->broken(status, reason), true);
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

  Server& server_;
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
  bool flush_posted_ = false;
  bool answering_ = false;  // a request is with the handler
  bool complete_ = false;   // its answer is
  bool gone_ = false;
  std::function<void()> on_gone_;
};

/// The handler's end of a session, for one request.
class SessionReply : public Reply {
 public:
  explicit SessionReply(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  ~SessionReply() override {
    if (!complete_) session_->abandon();
  }
  void send(HttpResponse response) override {
    if (std::exchange(complete_, true)) return;
    session_->send(response);
  }
  void begin(HttpResponse head) override { session_->begin(head); }
  bool write(std::string_view part) override { return session_->write(part); }
  void end() override {
    if (std::exchange(complete_, true)) return;
    session_->end();
  }
  void on_gone(std::function<void()> gone) override { session_->on_gone(std::move(gone)); }

 private:
  std::shared_ptr<Session> session_;
  bool complete_ = false;
};

void Server::bind() {
  const auto name = [&] { return fmt::format("{}:{}", options.host, options.port); };
  error_code error;
  tcp::resolver resolver(io_);
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
  if (error || found.empty())
    throw Error(
        fmt::format("cannot serve at {}: the host is unknown ({})", name(), error.message()));
  const tcp::endpoint wanted = found.begin()->endpoint();
  if (!error) acceptor_.open(wanted.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(wanted, error);
  if (!error) acceptor_.listen(net::socket_base::max_listen_connections, error);
  if (error)
    throw Error(fmt::format("cannot serve at {}: {}; choose another port, or end what uses it",
                            name(), error.message()));
  endpoint_ = acceptor_.local_endpoint();
}

void Server::start(HttpHandler& answerer) {
  handler = &answerer;
  net::post(acceptor_.get_executor(), [this] { accept(); });
  for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { io_.run(); });
}

void Server::accept() {
  acceptor_.async_accept(net::make_strand(io_.get_executor()),
                         [this](error_code error, Socket socket) {
                           if (error == net::error::operation_aborted || finishing_) return;
                           if (!error) {
                             add(std::move(socket));
                             accept();
                             return;
                           }
                           // Out of descriptors, say: connections that wait in the queue are taken
                           // later.
                           pause_.expires_after(std::chrono::milliseconds(100));
                           pause_.async_wait([this](error_code stopped) {
                             if (!stopped && !finishing_) accept();
                           });
                         });
}

void Server::add(Socket socket) {
  const auto session = std::make_shared<Session>(*this, std::move(socket));
  std::vector<std::shared_ptr<Session>> waiting;  // let go of without the lock: ~Session takes it
  {
    const std::lock_guard lock(mutex_);
    const bool full = sessions_.size() >= options.connections;
    for (Session* other : sessions_)
      if (full && other->waits())
        if (auto alive = other->weak_from_this().lock()) waiting.push_back(std::move(alive));
    if (full && waiting.empty()) return;  // everybody is being served: this one finds no place
    sessions_.insert(session.get());
  }
  if (!waiting.empty())
    (*std::ranges::min_element(waiting, {}, &Session::waiting_since))->close_soon(true);
  session->start();
}

void Server::finish() {
  finishing_ = true;
  net::post(acceptor_.get_executor(), [this] {
    error_code ignored;
    acceptor_.close(ignored);
    pause_.cancel();
  });
  std::vector<std::shared_ptr<Session>> all;
  {
    const std::lock_guard lock(mutex_);
    for (Session* session : sessions_)
      if (auto alive = session->weak_from_this().lock()) all.push_back(std::move(alive));
  }
  for (const auto& session : all) session->close_soon(false);
}

void Session::arm(std::chrono::milliseconds time) {
  timer_.expires_after(time);
  timer_.async_wait([weak = weak_from_this(), round = ++timer_round_](error_code error) {
    const auto self = weak.lock();
    if (!error && self && round == self->timer_round_) self->on_timeout();
  });
}

void Session::on_timeout() {
  if (phase_ == Phase::head || phase_ == Phase::body)
    broken(408, "the request came too slowly");
  else
    drop();
}

void Session::read() {
  if (reading_ || phase_ == Phase::closed) return;
  const size_t room = std::min(kReadBytes, kBufferBytes - buffer_.size());
  if (room == 0) return;
  reading_ = true;
  socket_.async_read_some(net::buffer(incoming_.data(), room),
                          [self = shared_from_this()](error_code error, size_t size) {
                            self->reading_ = false;
                            if (error)
                              self->lost();
                            else
                              self->on_read(size);
                          });
}

void Session::on_read(size_t size) {
  if (phase_ == Phase::closed) return;
  buffer_.commit(net::buffer_copy(buffer_.prepare(size), net::buffer(incoming_.data(), size)));
  if (phase_ == Phase::closing) {
    buffer_.consume(buffer_.size());
    drained_ += size;
    if (drained_ > kDrained) return drop();
  } else if (phase_ != Phase::answering) {
    advance();
  }
  read();
}

/// Parses what has come: all of the head, or the body.
void Session::advance() {
  if (phase_ == Phase::waiting && buffer_.size() > 0) {
    phase_ = Phase::head;
    waits_ = false;
    parser_.emplace();
    parser_->header_limit(server_.options.head_bytes);
    parser_->body_limit(boost::none);  // set when the head is known
    arm(server_.options.head);
  }
  if (phase_ == Phase::head && parse(false)) on_head();
  if (phase_ == Phase::body) {
    if (Clock::now() - body_began_ > server_.options.body)
      return broken(408, "the request's body came too slowly");
    arm(server_.options.stalled);
    if (parse(true)) on_request();
  }
}

/// Whether the head, or with `eager` all of the request, is complete.
bool Session::parse(bool eager) {
  parser_->eager(eager);
  const auto complete = [&] { return eager ? parser_->is_done() : parser_->is_header_done(); };
  while (!complete() && buffer_.size() > 0) {
    error_code error;
    const size_t used = parser_->put(buffer_.data(), error);
    buffer_.consume(used);
    if (error == http::error::need_more) {
      // What cannot become a line in this buffer never will.
      if (used == 0 && buffer_.size() >= kBufferBytes) broken(431, "a line is too long");
      return false;
    }
    if (error == http::error::header_limit) {
      broken(431, fmt::format("the headers have more than {} bytes", server_.options.head_bytes));
      return false;
    }
    if (error == http::error::body_limit) {
      broken(413, "the body is too large");
      return false;
    }
    if (error) {
      broken(400, fmt::format("this is no HTTP request: {}", error.message()));
      return false;
    }
    if (used == 0) break;
  }
  return complete();
}

void Session::on_head() {
  const auto& request = parser_->get();
  head_ = {};
  head_.method = std::string(request.method_string());
  head_.target = std::string(request.target());
  head_.peer = peer_;
  head_.chunked = parser_->chunked();
  if (const auto length = parser_->content_length()) head_.body_length = *length;
  for (const auto& field : request)
    head_.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  head_only_ = head_.method == "HEAD";
  old_client_ = request.version() == 10;
  keep_alive_ = keep_alive_ && request.keep_alive() && !old_client_ && !server_.finishing();

  if (request.version() != 10 && request.version() != 11) return broken(400, "expected HTTP/1.1");
  if (head_.count("Transfer-Encoding") > 0 && (head_.count("Content-Length") > 0 || old_client_))
    return broken(400, "a request has a Content-Length or is sent in chunks, not both");
  if (head_.count("Transfer-Encoding") > 0 &&
      !equal_ignoring_case(head_.header("Transfer-Encoding"), "chunked"))
    return broken(400, "the only transfer encoding that is known is chunked");
  const std::string_view length = head_.header("Content-Length");
  if (head_.count("Content-Length") > 1 || length.find_first_not_of("0123456789") != length.npos)
    return broken(400, "a request has one Content-Length, a number");
  if (head_.count("Host") > 1 || (!old_client_ && head_.count("Host") == 0))
    return broken(400, "a request names one Host");

  const bool has_body = head_.chunked || head_.body_length.value_or(0) > 0;
  const std::string_view expect = head_.header("Expect");
  std::optional<HttpResponse> refusal = server_.handler->refuse(head_);
  if (refusal) {
    if (!has_body) return refuse(std::move(*refusal), false);
    if (!expect.empty() || head_.chunked || *head_.body_length > kSkippedBody)
      return refuse(std::move(*refusal), true);
    refusal_ = std::move(refusal);
  }
  const uint64_t limit = server_.handler->most_body(head_);
  if (head_.body_length.value_or(0) > limit)
    return broken(
        413, fmt::format("the body has {} bytes; at most {} are taken", *head_.body_length, limit));
  parser_->body_limit(limit);
  if (!expect.empty() && !old_client_) {
    if (!equal_ignoring_case(expect, "100-continue"))
      return broken(417, "the only expectation that is known is 100-continue");
    if (has_body && buffer_.size() == 0) {
      const std::lock_guard lock(mutex_);
      outbox_ += "HTTP/1.1 100 Continue\r\n\r\n";
      unread_ = outbox_.size();
      post_flush();
    }
  }
  phase_ = Phase::body;
  body_began_ = Clock::now();
}

void Session::on_request() {
  if (refusal_) return refuse(*std::exchange(refusal_, std::nullopt), false);
  answer_begins();
  timer_round_++;
  timer_.cancel();
  HttpRequest request{.head = std::move(head_), .body = std::move(parser_->get().body())};
  const auto reply = std::make_shared<SessionReply>(shared_from_this());
  server_.handler->handle(std::move(request), reply);
}

void Session::answer_begins() {
  phase_ = Phase::answering;
  const std::lock_guard lock(mutex_);
  answering_ = true;
  complete_ = false;
}

void Session::refuse(HttpResponse response, bool close) {
  if (phase_ == Phase::answering || phase_ == Phase::closing || phase_ == Phase::closed) return;
  if (close) keep_alive_ = false;
  answer_begins();
  send(response);
}

void Session::send(const HttpResponse& response) {
  const std::lock_guard lock(mutex_);
  if (gone_ || !answering_) return;
  outbox_ += write_head(response, BodyFraming::length, !keep_alive_);
  if (!head_only_) outbox_ += response.body;
  unread_ = in_flight_.size() + outbox_.size();
  complete_ = true;
  on_gone_ = nullptr;
  post_flush();
}

void Session::begin(const HttpResponse& response) {
  const std::lock_guard lock(mutex_);
  if (gone_ || !answering_) return;
  outbox_ += write_head(response, old_client_ ? BodyFraming::until_close : BodyFraming::chunks,
                        !keep_alive_);
  post_flush();
}

bool Session::write(std::string_view part) {
  const std::lock_guard lock(mutex_);
  if (gone_ || !answering_) return false;
  if (part.empty() || head_only_) return true;
  const std::string bytes = old_client_ ? std::string(part) : chunk(part);
  if (unread_ + bytes.size() > server_.options.unread_bytes) {
    gone_ = true;
    net::post(socket_.get_executor(), [self = shared_from_this()] { self->drop(); });
    return false;
  }
  outbox_ += bytes;
  unread_ += bytes.size();
  post_flush();
  return true;
}

void Session::end() {
  const std::lock_guard lock(mutex_);
  if (gone_ || !answering_) return;
  if (!old_client_ && !head_only_) outbox_ += "0\r\n\r\n";
  complete_ = true;
  on_gone_ = nullptr;
  post_flush();
}

void Session::abandon() {
  net::post(socket_.get_executor(), [self = shared_from_this()] { self->drop(); });
}

void Session::on_gone(std::function<void()> gone) {
  {
    const std::lock_guard lock(mutex_);
    if (complete_) return;
    if (!gone_) {
      on_gone_ = std::move(gone);
      return;
    }
  }
  gone();
}

/// With the mutex held.
void Session::post_flush() {
  if (std::exchange(flush_posted_, true)) return;
  net::post(socket_.get_executor(), [self = shared_from_this()] { self->flush(); });
}

void Session::flush() {
  bool complete = false;
  {
    const std::lock_guard lock(mutex_);
    flush_posted_ = false;
    if (writing_ || phase_ == Phase::closed) return;
    in_flight_ = std::exchange(outbox_, {});
    unread_ = in_flight_.size();
    complete = complete_;
  }
  written_ = 0;
  if (!in_flight_.empty()) return write_some();
  if (complete && phase_ == Phase::answering) next_request();
}

void Session::write_some() {
  writing_ = true;
  if (phase_ == Phase::answering) arm(server_.options.stalled);
  socket_.async_write_some(net::buffer(in_flight_.data() + written_, in_flight_.size() - written_),
                           [self = shared_from_this()](error_code error, size_t size) {
                             self->writing_ = false;
                             if (error) return self->lost();
                             if (self->phase_ == Phase::closed) return;
                             self->written_ += size;
                             if (self->written_ < self->in_flight_.size())
                               return self->write_some();
                             if (self->phase_ == Phase::answering) {
                               ++self->timer_round_;
                               self->timer_.cancel();
                             }
                             self->flush();
                           });
}

void Session::next_request() {
  {
    const std::lock_guard lock(mutex_);
    answering_ = false;
    complete_ = false;
    on_gone_ = nullptr;
  }
  parser_.reset();
  refusal_.reset();
  if (!keep_alive_ || server_.finishing()) return linger();
  phase_ = Phase::waiting;
  waiting_since_ = Clock::now();
  waits_ = true;
  arm(server_.options.idle);
  advance();
  read();
}

/// Says that no more is sent, and drops for a while what still comes: a connection that is closed
/// with unread bytes is reset, and the last answer lost.
void Session::linger() {
  phase_ = Phase::closing;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  buffer_.consume(buffer_.size());
  arm(kLinger);
  read();
}

/// The client has closed the connection, or it broke.
void Session::lost() { drop(); }

void Session::drop() {
  if (phase_ == Phase::closed) return;
  phase_ = Phase::closed;
  ++timer_round_;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    outbox_.clear();
    if (!complete_) gone = std::move(on_gone_);
    on_gone_ = nullptr;
  }
  if (gone) gone();
  server_.remove(this);
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

struct HttpServer::State {
  explicit State(const Options& options) : server(options) {}
  Server server;
};

HttpServer::HttpServer(const Options& options) : state_(std::make_unique<State>(options)) {}
HttpServer::~HttpServer() = default;
void HttpServer::start(HttpHandler& handler) { state_->server.start(handler); }
void HttpServer::finish() { state_->server.finish(); }
void HttpServer::stop() { state_->server.stop(); }
size_t HttpServer::connections() const { return state_->server.connections(); }
uint16_t HttpServer::port() const { return state_->server.endpoint().port(); }
bool HttpServer::loopback() const { return state_->server.endpoint().address().is_loopback(); }
std::string HttpServer::address() const {
  const auto endpoint = state_->server.endpoint();
  std::string host = endpoint.address().to_string();
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  return fmt::format("{}:{}", host, endpoint.port());
}

}  // namespace mixtral::serve
