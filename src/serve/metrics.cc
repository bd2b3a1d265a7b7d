#include <fmt/format.h>

#include "serve/front_ends.h"

namespace mixtral::serve {
namespace {

/// Prometheus's text format, version 0.0.4.
class Page {
 public:
  void counter(std::string_view name, std::string_view help, double value) {
    add("counter", fmt::format("mixtral_{}_total", name), help, value);
  }
  void gauge(std::string_view name, std::string_view help, double value) {
    add("gauge", fmt::format("mixtral_{}", name), help, value);
  }
  const std::string& text() const { return text_; }

 private:
  void add(std::string_view type, const std::string& name, std::string_view help, double value) {
    text_ +=
        fmt::format("# HELP {} {}\n# TYPE {} {}\n{} {}\n", name, help, name, type, name, value);
  }
  std::string text_;
};

std::string metrics(const Models& models) {
  const EngineCounts c = models.counts();
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  Page page;
  page.counter("requests", "Requests that were queued.", number(c.jobs));
  page.counter("requests_finished", "Requests that were answered.", number(c.finished_jobs));
  page.counter("requests_failed", "Requests that failed in the engine.", number(c.failed_jobs));
  page.counter("requests_cancelled", "Requests whose client left.", number(c.cancelled_jobs));
  page.counter("requests_refused", "Requests that found the queue full.", number(c.refused_jobs));
  page.counter("prompt_tokens", "Tokens of the prompts that were read.", number(c.prompt_tokens));
  page.counter("prompt_tokens_cached", "Of these, tokens that were in the cache already.",
               number(c.cached_prompt_tokens));
  page.counter("generated_tokens", "Tokens that were made.", number(c.generated_tokens));
  page.counter("preemptions", "Times that a sequence lost its place in the cache.",
               number(c.cache.preemptions));
  page.counter("draft_tokens", "Tokens that speculation guessed and the model checked.",
               number(c.cache.speculation.drafted));
  page.counter("draft_tokens_accepted", "Of these, tokens that were right.",
               number(c.cache.speculation.accepted));
  page.counter("busy_seconds", "Seconds in which the engine computed.", c.busy_seconds);
  page.gauge("answers_running", "Answers that are being made.", number(c.running));
  page.gauge("requests_waiting", "Requests of which no answer has begun.", number(c.waiting));
  page.gauge("cache_pages", "Pages of the key-value cache.", number(c.cache.pages));
  page.gauge("cache_pages_used", "Of these, pages of answers that are being made.",
             number(c.cache.used_pages));
  page.gauge("cache_pages_kept", "Of these, pages kept for prompts that begin alike.",
             number(c.cache.kept_pages));
  return page.text();
}

}  // namespace

void add_metrics_route(Router& router, Models& models) {
  router.add({.method = "GET",
              .path = "/metrics",
              .handler = [&models](const HttpRequest&, const std::shared_ptr<Reply>& reply) {
                reply->send(
                    {.headers = {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}},
                     .body = metrics(models)});
              }});
}

}  // namespace mixtral::serve
