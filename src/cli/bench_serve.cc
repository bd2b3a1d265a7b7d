#include "cli/bench_serve.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/messages.h"
#include "cli/bench_options.h"
#include "cli/common.h"
#include "client/load_summary.h"

namespace mixtral {
namespace {

using client::LoadSummary;
using client::Spread;
using nlohmann::ordered_json;

constexpr const char* kServeExamples =
    "Asks for streams, over HTTP, and measures how their tokens come. Without --data, prompts are\n"
    "random words of about as many tokens as --prompt-tokens says, each prompt another one.\n"
    "Examples:\n"
    "  mixtral bench serve --url http://127.0.0.1:8080/v1 --clients 8 --requests 64\n"
    "  mixtral bench serve --url http://127.0.0.1:8080/v1 --rate 2.5 --seconds 60 \\\n"
    "    --prompt-tokens lognormal:256:0.8 --max-tokens 16-128 --limit-first-ms 2000\n";

struct ServeBench {
  std::string url, key, model, data, prompt_tokens = "128", max_tokens = "64";
  int64_t clients = 1, requests = 0, warmup = 2;
  double rate = 0, seconds = 0, timeout = 600, temperature = 0, leaving = 0;
  double limit_first = 0, limit_token = 0;
  uint64_t seed = 1;
  bool chat = false, ignore_eos = false, json = false, quiet = false;
};

client::Workload workload_of(const ServeBench& o) {
  return client::Workload({.prompt = client::Lengths::parse(o.prompt_tokens, "prompt-tokens"),
                           .answer = client::Lengths::parse(o.max_tokens, "max-tokens"),
                           .file = o.data,
                           .model = o.model,
                           .chat = o.chat,
                           .ignore_eos = o.ignore_eos,
                           .temperature = o.temperature,
                           .leaving = o.leaving,
                           .seed = o.seed});
}

client::LoadOptions load_options(const ServeBench& o) {
  client::LoadOptions options{.server = client::parse_address(o.url),
                              .key = o.key,
                              .clients = o.clients,
                              .rate = o.rate,
                              .requests = o.requests,
                              .seconds = o.seconds,
                              .warmup = o.warmup,
                              .timeout = o.timeout,
                              .seed = o.seed};
  if (options.key.empty())
    if (const char* key = std::getenv("MIXTRAL_API_KEY"); key != nullptr) options.key = key;
  constexpr int64_t kRequestsOfAClient = 8;
  if (options.requests == 0 && options.seconds == 0)
    options.requests = kRequestsOfAClient * (o.rate > 0 ? 1 : o.clients);
  return options;
}

ordered_json spread_json(const Spread& spread) {
  return {{"mean", spread.mean},
          {"p50", spread.p50},
          {"p90", spread.p90},
          {"p99", spread.p99},
          {"max", spread.most}};
}

void print_json(const ServeBench& o, const client::LoadResults& results, const LoadSummary& s) {
  ordered_json errors = ordered_json::object();
  for (const auto& [what, count] : s.errors) errors[what] = count;
  ordered_json json{{"bench", "serve"}, {"url", o.url}, {"model", results.model}};
  if (o.rate > 0)
    json["rate"] = o.rate;
  else
    json["clients"] = o.clients;
  json.update({{"seed", o.seed},
               {"seconds", s.seconds},
               {"requests", s.requests},
               {"answered", s.answered},
               {"left", s.left},
               {"errors", errors},
               {"prompt_tokens", s.prompt_tokens},
               {"tokens", s.tokens},
               {"requests_per_s", s.requests_per_second},
               {"tok_per_s", s.tokens_per_second},
               {"prompt_tok_per_s", s.prompt_tokens_per_second},
               {"first_token_ms", spread_json(s.first)},
               {"time_per_token_ms", spread_json(s.token)},
               {"gap_ms", spread_json(s.gap)},
               {"request_ms", spread_json(s.whole)},
               {"limit_first_ms", o.limit_first},
               {"limit_token_ms", o.limit_token},
               {"good", s.good},
               {"goodput_per_s", s.goodput}});
  fmt::print("{}\n", json.dump());
}

void print_table(const ServeBench& o, const client::LoadResults& results, const LoadSummary& s) {
  const std::string load = o.rate > 0 ? fmt::format("{:g} requests a second", o.rate)
                                      : fmt::format("{} clients", o.clients);
  fmt::print("bench serve: {} at {}, {}, {:.1f} s\n", results.model, o.url, load, s.seconds);
  fmt::print("{:22} {} of {}, {} left\n", "answered", s.answered, s.requests, s.left);
  for (const auto& [what, count] : s.errors) fmt::print("{:22} {} x {}\n", "error", count, what);
  fmt::print("{:22} {:.1f} (in all {})\n", "tok_per_s", s.tokens_per_second, s.tokens);
  fmt::print("{:22} {:.1f} (in all {})\n", "prompt_tok_per_s", s.prompt_tokens_per_second,
             s.prompt_tokens);
  fmt::print("{:22} {:.2f}\n", "requests_per_s", s.requests_per_second);
  fmt::print("{:22} {:.2f} ({} answers within the limits)\n\n", "goodput_per_s", s.goodput, s.good);
  fmt::print("{:22} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "ms", "mean", "p50", "p90", "p99", "max");
  const auto row = [](const char* name, const Spread& spread) {
    fmt::print("{:22} {:9.1f} {:9.1f} {:9.1f} {:9.1f} {:9.1f}\n", name, spread.mean, spread.p50,
               spread.p90, spread.p99, spread.most);
  };
  row("first_token", s.first);
  row("time_per_token", s.token);
  row("gap", s.gap);
  row("request", s.whole);
}

void run_bench_serve(const ServeBench& o) {
  const client::LoadOptions options = load_options(o);
  const bool shown = !o.quiet && ::isatty(STDERR_FILENO) != 0;
  const client::LoadResults results = client::run_load(options, workload_of(o), [&](int64_t ended) {
    if (shown) messages::redraw(fmt::format("{} requests have ended", ended));
  });
  if (shown) messages::clear();
  const LoadSummary summary =
      client::summarize(results, {.first = o.limit_first, .token = o.limit_token});
  if (o.json)
    print_json(o, results, summary);
  else
    print_table(o, results, summary);
  if (summary.answered == 0 && summary.left == 0)
    throw Error(fmt::format("{}: none of {} requests was answered", o.url, summary.requests));
}

}  // namespace

void add_bench_serve_command(cli::App& bench) {
  auto o = std::make_shared<ServeBench>();
  cli::App* command =
      bench.add_subcommand("serve", "Measure any OpenAI-compatible server under load");
  command->footer(kServeExamples);
  command
      ->add_option("--url", o->url,
                   "The server's base URL, as OpenAI's clients take it: http://HOST:PORT/v1")
      ->required();
  command->add_option("--api-key", o->key,
                      "The key to send; default: the environment's MIXTRAL_API_KEY");
  command->add_option("-m,--model", o->model,
                      "The model to name; default: the first that the server lists");
  cli::Option* clients =
      command
          ->add_option("--clients", o->clients,
                       "Clients, each of which sends its next request when its last is answered")
          ->capture_default_str()
          ->check(cli::Range(1, 10'000));
  command
      ->add_option("--rate", o->rate,
                   "Instead of clients: requests a second on average, at Poisson's intervals, "
                   "however many are under way")
      ->check(cli::Range(0.001, 1e5))
      ->excludes(clients);
  command
      ->add_option("--requests", o->requests,
                   "Requests that are measured; default: 8 a client, unless --seconds is given")
      ->check(cli::Range(1, 10'000'000));
  command->add_option("--seconds", o->seconds, "No request begins later than this")
      ->check(cli::Range(0.1, 1e6));
  command->add_option("--warmup", o->warmup, "Requests before these, which are not measured")
      ->capture_default_str()
      ->check(cli::Range(0, 1'000'000));
  command->add_option("--timeout", o->timeout, "Seconds after which a request is an error")
      ->capture_default_str()
      ->check(cli::Range(0.1, 1e6));
  add_length_options(*command, o->prompt_tokens, o->max_tokens);
  command->add_option("--data", o->data,
                      "JSONL, whose rows take turns: prompt (text or ids), messages or "
                      "prompt_tokens, and perhaps max_tokens");
  command->add_flag("--chat", o->chat, "Send random words as a user's message");
  command->add_flag("--ignore-eos", o->ignore_eos,
                    "Ask for as many tokens as allowed (not every server knows this)");
  command->add_option("--temp", o->temperature, "Temperature of the answers")
      ->capture_default_str()
      ->check(cli::Range(0.0, 2.0));
  command
      ->add_option("--leave", o->leaving,
                   "The share of requests whose client leaves in the middle of the answer")
      ->check(cli::Range(0.0, 1.0));
  command
      ->add_option("--limit-first-ms", o->limit_first,
                   "An answer is good when its first text comes within this time")
      ->check(cli::Range(0.0, 1e9));
  command
      ->add_option("--limit-token-ms", o->limit_token,
                   "... and when it takes no longer than this for each further token")
      ->check(cli::Range(0.0, 1e9));
  command->add_option("-s,--seed", o->seed, "Of lengths, words and intervals")
      ->capture_default_str();
  command->add_flag("--json", o->json, "Print one JSON object");
  command->add_flag("-q,--quiet", o->quiet, "No progress");
  command->callback([o, &bench] {
    refuse_flags_in_front(bench, "serve");
    run_bench_serve(*o);
  });
}

}  // namespace mixtral
