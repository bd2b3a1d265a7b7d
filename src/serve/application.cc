#include "serve/application.h"

#include <thread>

#include "serve/anthropic.h"
#include "serve/experts.h"
#include "serve/front_ends.h"
#include "serve/management.h"
#include "serve/page.h"
#include "serve/responses.h"
#include "serve/slots.h"

namespace mixtral::serve {
namespace {

using Clock = std::chrono::steady_clock;

AccessOptions access_of(const Application::Options& options, const HttpServer& server) {
  AccessOptions access = options.access;
  access.loopback = server.loopback();
  return access;
}

HttpResponse health(int status, const std::string& word) {
  HttpResponse response{.status = status,
                        .headers = {{"Content-Type", "application/json"}},
                        .body = "{\"status\":\"" + word + "\"}\n"};
  if (status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

/// Waits until `done`, or the time is over.
void wait_until(Clock::time_point end, const std::function<bool()>& done) {
  while (!done() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

Application::Application(Options options)
    : options_(std::move(options)),
      server_(options_.http),
      loading_(access_of(options_, server_)),
      current_(&loading_) {
  loading_.add(
      {.method = "GET",
       .path = "/health",
       .handler = [](const HttpRequest&,
                     const std::shared_ptr<Reply>& reply) { reply->send(health(503, "loading")); },
       .access = Access::open});
  server_.start(*this);
}

Application::~Application() { server_.stop(); }

void Application::open(const ModelSource& source, const OpenOptions& options,
                       const ModelSource::Note& note) {
  Models::Options models = options_.models;
  models.open = options;
  models_ = std::make_unique<Models>(source, std::move(models), note);
  router_ = std::make_unique<Router>(access_of(options_, server_));
  router_->add(
      {.method = "GET",
       .path = "/health",
       .handler = [](const HttpRequest&,
                     const std::shared_ptr<Reply>& reply) { reply->send(health(200, "ok")); },
       .access = Access::open});
  add_openai_routes(*router_, *models_);
  add_text_routes(*router_, *models_);
  add_anthropic_routes(*router_, *models_);
  add_responses_routes(*router_, *models_);
  add_experts_route(*router_, *models_);
  add_management_routes(*router_, *models_);
  add_slots_route(*router_, *models_);
  add_page_routes(*router_);
  add_openapi_route(*router_);
  if (options_.metrics) add_metrics_route(*router_, *models_);
  current_ = router_.get();
}

void Application::finish(std::chrono::milliseconds grace) {
  server_.finish();
  if (!models_) return;
  models_->drain();
  wait_until(Clock::now() + grace, [&] { return models_->idle(); });
  models_->end_all(unavailable("the server is shutting down"));
  const auto end = Clock::now() + std::chrono::seconds(2);
  wait_until(end, [&] { return models_->idle(); });
  wait_until(end, [&] { return server_.connections() == 0; });
}

std::optional<HttpResponse> Application::refuse(const HttpHead& head) {
  Router* router = current_;
  if (router == &loading_ && head.path() != "/health")
    return openai_error(unavailable("the model is loading"));
  return router->refuse(head);
}

uint64_t Application::most_body(const HttpHead& head) { return current_.load()->most_body(head); }

HttpResponse Application::broken(int status, std::string_view reason) {
  return current_.load()->broken(status, reason);
}

void Application::handle(HttpRequest request, std::shared_ptr<Reply> reply) {
  Router* router = current_;
  router->handle(std::move(request), std::move(reply));
}

}  // namespace mixtral::serve
