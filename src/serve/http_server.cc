#include "serve/http_server.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "serve/http_session.h"

namespace mixtral::serve {
namespace {

using Acceptor = net::basic_socket_acceptor<tcp, Strand>;

/// The connections of one server.
class Server : public SessionHost {
 public:
  explicit Server(const HttpServer::Options& given)
      : SessionHost(given),
        acceptor_(net::make_strand(io_.get_executor())),
        pause_(acceptor_.get_executor()) {
    bind();
  }
  ~Server() override { stop(); }

  void start(HttpHandler& answerer);
  void finish();
  void stop() {
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  void remove(Session* session) override {
    const std::lock_guard lock(mutex_);
    sessions_.erase(session);
  }
  size_t connections() const {
    const std::lock_guard lock(mutex_);
    return sessions_.size();
  }
  tcp::endpoint endpoint() const { return endpoint_; }

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
  try {
    acceptor_.open(wanted.protocol());
    acceptor_.set_option(tcp::acceptor::reuse_address(true));
    acceptor_.bind(wanted);
    acceptor_.listen();
  } catch (const boost::system::system_error& failure) {
    throw Error(fmt::format("cannot serve at {}: {}; choose another port, or end what uses it",
                            name(), failure.code().message()));
  }
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
                           if (error == net::error::operation_aborted || finishing) return;
                           if (!error) {
                             add(std::move(socket));
                             accept();
                             return;
                           }
                           // Out of descriptors, say: connections that wait in the queue are taken
                           // later.
                           pause_.expires_after(std::chrono::milliseconds(100));
                           pause_.async_wait([this](error_code stopped) {
                             if (!stopped && !finishing) accept();
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
  finishing = true;
  net::post(acceptor_.get_executor(), [this] {
    error_code ignored;
    std::ignore = acceptor_.close(ignored);
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
}  // namespace

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
