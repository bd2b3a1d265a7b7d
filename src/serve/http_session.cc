// Beast parses requests; all else (when to read, what to write, how long to wait) is here.
#include "serve/http_session.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/http_head.h"

namespace mixtral::serve {
namespace {

constexpr uint64_t kSkippedBody = 64 << 10;   // of a refused request, to keep its connection
constexpr size_t kDrained = size_t{1} << 20;  // dropped after a refusal, so that it can be read
constexpr auto kLinger = std::chrono::seconds(2);

std::string chunk(std::string_view part) {
  return fmt::format("{:x}\r\n{}\r\n", part.size(), part);
}
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
}  // namespace

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
    parser_->header_limit(host_.options.head_bytes);
    parser_->body_limit(boost::none);  // set when the head is known
    arm(host_.options.head);
  }
  if (phase_ == Phase::head && parse(false)) on_head();
  if (phase_ == Phase::body) {
    if (Clock::now() - body_began_ > host_.options.body)
      return broken(408, "the request's body came too slowly");
    arm(host_.options.stalled);
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
      broken(431, fmt::format("the headers have more than {} bytes", host_.options.head_bytes));
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
  keep_alive_ = keep_alive_ && request.keep_alive() && !old_client_ && !host_.finishing;

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
  std::optional<HttpResponse> refusal = host_.handler->refuse(head_);
  if (refusal) {
    if (!has_body) return refuse(*refusal, false);
    if (!expect.empty() || head_.chunked || *head_.body_length > kSkippedBody)
      return refuse(*refusal, true);
    refusal_ = std::move(refusal);
  }
  const uint64_t limit = host_.handler->most_body(head_);
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
  host_.handler->handle(std::move(request), reply);
}

void Session::answer_begins() {
  phase_ = Phase::answering;
  const std::lock_guard lock(mutex_);
  answering_ = true;
  complete_ = false;
  largest_ = 0;
}

void Session::refuse(const HttpResponse& response, bool close) {
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
  largest_ = std::max(largest_, bytes.size());
  if (unread_ + bytes.size() > host_.options.unread_bytes + largest_) {
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
  if (phase_ == Phase::answering) arm(host_.options.stalled);
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
  if (!keep_alive_ || host_.finishing) return linger();
  phase_ = Phase::waiting;
  waiting_since_ = Clock::now();
  waits_ = true;
  arm(host_.options.idle);
  advance();
  read();
}

/// Says that no more is sent, and drops for a while what still comes: a connection that is closed
/// with unread bytes is reset, and the last answer lost.
void Session::linger() {
  phase_ = Phase::closing;
  error_code ignored;
  std::ignore = socket_.shutdown(tcp::socket::shutdown_send, ignored);
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
  std::ignore = socket_.close(ignored);
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    outbox_.clear();
    if (!complete_) gone = std::move(on_gone_);
    on_gone_ = nullptr;
  }
  if (gone) gone();
  host_.remove(this);
}

}  // namespace mixtral::serve
