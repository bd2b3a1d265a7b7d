#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "serve/http_server.h"
#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// A whole server: listens while the model is opened (and says so), serves it, and ends in order.
class Application : private HttpHandler {
 public:
  struct Options {
    HttpServer::Options http;
    AccessOptions access;    // `loopback` is filled in
    Models::Options models;  // `open` is filled in
    bool metrics = false;
  };
  /// Binds to the address and answers that the model is loading. Throws Error.
  explicit Application(Options options);
  ~Application() override;

  const HttpServer& http() const { return server_; }
  /// Opens the first model; from then on it is served. Throws as Service does.
  void open(const ModelSource& source, const OpenOptions& options, const ModelSource::Note& note);
  const Models& models() const { return *models_; }
  /// Of the open model.
  const std::vector<Route>& routes() const { return router_->routes(); }
  /// Takes no more requests, lets those that are under way go on for `grace`, and ends the rest.
  void finish(std::chrono::milliseconds grace);

 private:
  std::optional<HttpResponse> refuse(const HttpHead& head) override;
  uint64_t most_body(const HttpHead& head) override;
  HttpResponse broken(int status, std::string_view reason) override;
  void handle(HttpRequest request, std::shared_ptr<Reply> reply) override;

  Options options_;
  HttpServer server_;
  Router loading_;  // until the model is there
  std::unique_ptr<Models> models_;
  std::unique_ptr<Router> router_;
  std::atomic<Router*> current_;
};

}  // namespace mixtral::serve
