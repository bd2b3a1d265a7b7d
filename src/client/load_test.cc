#include "client/load_test.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cmath>
#include <exception>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "base/random.h"
#include "client/event_reader.h"
#include "client/http_client.h"
#include "io/json.h"

namespace mixtral::client {
namespace {

namespace net = boost::asio;
using Clock = std::chrono::steady_clock;

constexpr int64_t kProbeWords = 16;  // and twice as many: both fit every context
constexpr size_t kMostErrorBytes = 4096;

/// What a stream has brought so far.
struct Stream {
  std::string refusal;  // the body of an answer that is no stream
  int64_t texts = 0;
  bool done = false;
  std::string error;
};

/// The text of an event of either route, which may be empty.
std::string text_of(const Json& choice) {
  const Json* text = choice.find("text");
  if (text == nullptr)
    if (const Json* delta = choice.find("delta")) text = delta->find("content");
  return text != nullptr && text->is_string() ? text->as_string() : std::string();
}

void read_usage(const Json& event, Outcome& outcome) {
  const Json* usage = event.find("usage");
  if (usage == nullptr || !usage->is_object()) return;
  if (const Json* count = usage->find("prompt_tokens"); count != nullptr && count->is_integer())
    outcome.prompt_tokens = count->as_int();
  if (const Json* count = usage->find("completion_tokens"); count != nullptr && count->is_integer())
    outcome.tokens = count->as_int();
}

void read_event(std::string_view data, double now, Outcome& outcome, Stream& stream) {
  if (data == "[DONE]") {
    stream.done = true;
    return;
  }
  const Json event = Json::parse(data, "an event of the server's stream");
  if (event.find("error") != nullptr) {
    stream.error = "an error in the stream";
    return;
  }
  read_usage(event, outcome);
  const Json* choices = event.find("choices");
  if (choices == nullptr || !choices->is_array() || choices->items().empty()) return;
  if (text_of(choices->items().front()).empty()) return;
  ++stream.texts;
  if (outcome.first > 0) outcome.gaps.push_back(static_cast<float>(now - outcome.last));
  if (outcome.first == 0) outcome.first = now;
  outcome.last = now;
}

class LoadTest {
 public:
  LoadTest(const LoadOptions& options, Workload workload,
           const std::function<void(int64_t)>& progress)
      : options_(options),
        workload_(std::move(workload)),
        progress_(progress),
        client_(io_.get_executor(), options.server, options.key,
                std::chrono::milliseconds(std::llround(options.timeout * 1e3))) {}

  LoadResults run() {
    finish(prepare());
    results_.left_out = options_.warmup;
    measuring_ = false;
    spawn_clients(options_.warmup);
    measuring_ = true;
    start_ = Clock::now();
    if (options_.rate > 0) {
      finish(arrive());
    } else {
      spawn_clients(options_.requests);
    }
    for (const Outcome& outcome : results_.outcomes)
      results_.seconds = std::max(results_.seconds, outcome.end);
    return std::move(results_);
  }

 private:
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  /// Runs until this, and all that it began, has ended. Throws what it throws.
  void finish(net::awaitable<void> work) {
    std::exception_ptr failure;
    net::co_spawn(io_, std::move(work), [&](const std::exception_ptr& error) { failure = error; });
    io_.restart();
    io_.run();
    if (failure) std::rethrow_exception(failure);
  }

  /// All clients, until they have asked so many requests (0: until the time is over).
  void spawn_clients(int64_t requests) {
    asked_ = 0;
    ended_ = 0;
    if (requests == 0 && !measuring_) return;
    for (int64_t i = 0; i < options_.clients; ++i)
      net::co_spawn(io_, one_client(requests), net::detached);
    io_.restart();
    io_.run();
  }

  bool may_begin(int64_t requests) const {
    if (requests > 0 && asked_ >= requests) return false;
    return !measuring_ || options_.seconds <= 0 || now() < options_.seconds;
  }

  net::awaitable<void> one_client(int64_t requests) {
    while (may_begin(requests)) {
      ++asked_;
      co_await one_request(measuring_ ? now() : 0);
    }
  }

  /// Poisson's arrivals: each at its time, however many are under way.
  net::awaitable<void> arrive() {
    asked_ = 0;
    ended_ = 0;
    RandomStream random(options_.seed, 0);
    net::steady_timer timer(io_);
    double due = 0;
    while (true) {
      due += -std::log(1 - random.uniform()) / options_.rate;
      if (options_.requests > 0 && asked_ >= options_.requests) co_return;
      if (options_.seconds > 0 && due >= options_.seconds) co_return;
      ++asked_;
      timer.expires_at(
          start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(due)));
      co_await timer.async_wait(net::use_awaitable);
      net::co_spawn(io_, one_request(due), net::detached);
    }
  }

  net::awaitable<void> one_request(double asked) {
    Outcome outcome{.asked = asked};
    try {
      const Work work = workload_.at(next_++);
      co_await ask(work, outcome);
    } catch (const std::exception& error) {
      outcome.error = error.what();
    }
    outcome.end = now();
    if (measuring_) {
      results_.outcomes.push_back(std::move(outcome));
      if (progress_) progress_(++ended_);
    }
  }

  net::awaitable<void> ask(const Work& work, Outcome& outcome) {
    Stream stream;
    EventReader events;
    const HttpClient::Call call{.method = "POST", .route = work.route, .body = work.body};
    const HttpClient::OnPart on_part = [&](int code, std::string_view part) {
      if (code != 200) {
        stream.refusal += part.substr(0, kMostErrorBytes - stream.refusal.size());
        return stream.refusal.size() < kMostErrorBytes;
      }
      events.push(part, [&](std::string_view data) { read_event(data, now(), outcome, stream); });
      outcome.left = work.leaves_after && stream.texts >= *work.leaves_after && !stream.done;
      return !outcome.left && stream.error.empty();
    };
    const int status = co_await client_.send(call, on_part);
    if (status != 200) {
      last_refusal_ = stream.refusal;
      throw Error(fmt::format("HTTP {}", status));
    }
    if (!stream.error.empty()) throw Error(stream.error);
    if (!stream.done && !outcome.left) throw Error("the stream ended early");
    if (outcome.tokens == 0) outcome.tokens = stream.texts;
  }

  /// Finds the model's name, and how many tokens a word has.
  net::awaitable<void> prepare() {
    start_ = Clock::now();
    results_.model = co_await model_name();
    workload_.set_model(results_.model);
    Outcome few, many;
    const Work less = workload_.probe(kProbeWords), more = workload_.probe(2 * kProbeWords);
    try {
      co_await ask(less, few);
      co_await ask(more, many);
    } catch (const Error& error) {
      throw Error(fmt::format("the server refused a first request: {} {}", error.what(),
                              printable(last_refusal_)));
    }
    // What stands before every prompt, such as BOS, is not counted with its words.
    const auto words = static_cast<double>(kProbeWords);
    const auto tokens = static_cast<double>(many.prompt_tokens - few.prompt_tokens);
    if (tokens > 0) workload_.set_tokens_per_word(tokens / words);
  }

  net::awaitable<std::string> model_name() {
    std::string body;
    const HttpClient::Call call{.route = "/models"};
    const HttpClient::OnPart on_part = [&](int, std::string_view part) {
      body += part;
      return true;
    };
    const int status = co_await client_.send(call, on_part);
    if (status != 200)
      throw Error(fmt::format("GET {}/models: HTTP {}: {}", options_.server.prefix, status,
                              printable(body.substr(0, kMostErrorBytes))));
    if (!workload_.model().empty()) co_return workload_.model();
    const Json json = Json::parse(body, "the server's list of models");
    const auto& models = json.at("data").items();
    if (models.empty()) throw Error("the server lists no model");
    co_return models.front().at("id").as_string();
  }

  const LoadOptions& options_;
  Workload workload_;
  const std::function<void(int64_t)>& progress_;
  net::io_context io_{1};
  HttpClient client_;
  LoadResults results_;
  Clock::time_point start_;
  bool measuring_ = false;
  int64_t asked_ = 0, ended_ = 0;
  uint64_t next_ = 0;  // number of the next request
  std::string last_refusal_;
};

}  // namespace

LoadResults run_load(const LoadOptions& options, Workload workload,
                     const std::function<void(int64_t)>& progress) {
  return LoadTest(options, std::move(workload), progress).run();
}

}  // namespace mixtral::client
