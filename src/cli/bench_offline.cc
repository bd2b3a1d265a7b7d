#include "cli/bench_offline.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "backends/registry.h"
#include "base/messages.h"
#include "cli/bench_model.h"
#include "cli/bench_options.h"
#include "cli/bench_report.h"
#include "client/lengths.h"
#include "infer/engine.h"
#include "infer/inference_plan.h"
#include "train/trainer.h"

namespace mixtral {
namespace {

using OfflineClock = std::chrono::steady_clock;

constexpr const char* kOfflineExamples =
    "A fixed set of requests with random tokens, all there at once: how many tokens a second come\n"
    "out. In shape it is the offline scenario of MLPerf Inference's Mixtral 8x7B task: 15,000\n"
    "requests, a third each of OpenOrca, GSM8K and MBXP, prompts of up to 2,048 tokens, answers\n"
    "of 144.84 tokens on average and 1,024 at most (github.com/mlcommons/inference,\n"
    "language/mixtral-8x7b). The default lengths have these limits and that mean. The mean length\n"
    "of its prompts is not published there; 300 is assumed.\n"
    "Examples:\n"
    "  mixtral bench serve-offline --model 8x7b --requests 3000 --device cuda:0\n"
    "  mixtral bench serve-offline --model 8x7b --requests 6000 --quantize-base fp8 \\\n"
    "      --dtype fp8 --cache-dtype fp8\n"
    "  mixtral bench serve-offline --model tiny --prompt-tokens 32 --max-tokens 8-24 --json\n";

constexpr int64_t kMostSequences = 16'384;
constexpr int64_t kMarginShare = 128;  // so small a part of the memory is left free
constexpr double kMorePrompts = 1.25;
constexpr int64_t kWarmupTokens = 4;
constexpr int64_t kSettlingSteps = 32;  // of a profile, once nearly all places are taken

struct OfflineBench {
  CommonOptions common;
  std::string model = "small", prompt_tokens = "lognormal:220:0.8:2048",
              max_tokens = "lognormal:106:0.8:1024";
  std::optional<int64_t> layers;
  int64_t requests = 256, sequences = 0, cache_tokens = 0, chunk = 0, warmup = 32;
  bool profile = false;
};

/// The requests: how long each prompt and answer is, and what its tokens are drawn from.
class OfflineWork {
 public:
  explicit OfflineWork(const OfflineBench& o) : seed_(o.common.seed) {
    const auto prompt = client::Lengths::parse(o.prompt_tokens, "prompt-tokens");
    const auto answer = client::Lengths::parse(o.max_tokens, "max-tokens");
    RandomStream random(o.common.seed, kLengthStream);
    for (int64_t i = 0; i < o.requests; ++i) {
      const int64_t tokens = prompt.draw(random);
      lengths_.push_back({tokens, answer.draw(random)});
    }
  }

  int64_t size() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t prompt_tokens() const {
    return sum([](const Length& l) { return l.prompt; });
  }
  int64_t answer_tokens() const {
    return sum([](const Length& l) { return l.answer; });
  }
  int64_t context() const {
    int64_t longest = 0;
    for (const Length& l : lengths_) longest = std::max(longest, l.prompt + l.answer);
    return longest + 1;
  }
  /// What a sequence holds in the cache on average over its steps: its prompt, half of its answer,
  /// and half of a page that is not full.
  double cached_tokens(int64_t page) const {
    const int64_t held = sum([](const Length& l) { return l.answer * (2 * l.prompt + l.answer); });
    return 0.5 * static_cast<double>(held) / static_cast<double>(answer_tokens()) +
           0.5 * static_cast<double>(page);
  }
  double flops(const ModelConfig& config) const {
    double all = 0;
    for (const Length& l : lengths_)
      all +=
          reading_flops(config, 0, l.prompt, 1) + writing_flops(config, l.prompt + 1, l.answer - 1);
    return all;
  }

  /// Request i, with an answer of at most `most` tokens.
  Request request(const ModelConfig& config, int64_t i, int64_t most) const {
    const Length& length = lengths_[static_cast<size_t>(i % size())];
    const uint64_t seed = seed_ + static_cast<uint64_t>(i) + 1;
    Request request{.prompt = random_tokens(config, length.prompt, seed)};
    request.options = {.sampling = {.temperature = 0}, .max_tokens = std::min(length.answer, most)};
    return request;
  }
  Request request(const ModelConfig& config, int64_t i) const {
    return request(config, i, std::numeric_limits<int64_t>::max());
  }

 private:
  static constexpr uint64_t kLengthStream = 1;
  struct Length {
    int64_t prompt = 0, answer = 0;
  };
  template <class F>
  int64_t sum(const F& f) const {
    int64_t all = 0;
    for (const Length& l : lengths_) all += f(l);
    return all;
  }

  uint64_t seed_;
  std::vector<Length> lengths_;
};

/// What happened, from the first request's arrival to the last one's end.
struct OfflineRun {
  double seconds = 0, prompt_seconds = 0;  // in all, and of steps with tokens of prompts
  int64_t tokens = 0, ended = 0;
  int64_t most_running = 0;
  Engine::Usage before, after;
  // The steady part: from when as many requests have ended as can be under way, to the last one's
  // beginning.
  double steady_seconds = 0;
  int64_t steady_tokens = 0;
};

OfflineRun serve_offline(Engine& engine, std::vector<Request> requests, bool shown) {
  OfflineRun run;
  run.before = engine.usage();
  const auto count = static_cast<int64_t>(requests.size());
  const auto start = OfflineClock::now();
  for (Request& request : requests) {
    request.on_token = [&run](const GeneratedToken&) {
      ++run.tokens;
      return Next::go_on;
    };
    request.on_finish = [&run](FinishReason) { ++run.ended; };
    engine.submit(std::move(request));
  }
  auto last = start;
  int64_t prompt_steps = run.before.prompt_steps;
  int64_t steady_from = -1;  // tokens that were there when the steady part began
  for (bool more = true; more;) {
    more = engine.step();
    const auto now = OfflineClock::now();
    const double seconds = std::chrono::duration<double>(now - last).count();
    last = now;
    const Engine::Usage usage = engine.usage();
    if (std::exchange(prompt_steps, usage.prompt_steps) != usage.prompt_steps)
      run.prompt_seconds += seconds;
    run.most_running = std::max(run.most_running, usage.running);
    if (usage.waiting > 0 && run.ended >= engine.sequences()) {
      if (steady_from < 0) {
        steady_from = run.tokens;
      } else {
        run.steady_seconds += seconds;
        run.steady_tokens = run.tokens - steady_from;
      }
    }
    if (shown) messages::redraw(fmt::format("{} of {} requests are done", run.ended, count));
  }
  if (shown) messages::clear();
  run.seconds = std::chrono::duration<double>(last - start).count();
  run.after = engine.usage();
  return run;
}

/// Notes the ops of one step with as many sequences as there will be, and prompts beside them.
void profile_step(Engine& engine, Profiler& profiler, const OfflineWork& work,
                  const ModelConfig& config, int64_t most_running) {
  for (int64_t i = 0; i < 2 * engine.sequences(); ++i) engine.submit(work.request(config, i));
  int64_t settled = 0;
  while (settled < kSettlingSteps && engine.usage().waiting > 0 && engine.step()) {
    if (10 * engine.usage().running >= 9 * most_running) ++settled;
    profiler.clear();
  }
  engine.step();
}

void report_offline(const OfflineRun& run, const OfflineWork& work, Report& report) {
  const auto count = [&](const char* key, int64_t value) {
    report.line(key, fmt::format("{}", value), static_cast<double>(value));
  };
  const auto rate = [&](const char* key, double value) {
    report.line(key, fmt::format("{:.1f}", value), value);
  };
  const auto share = [&](const char* key, double value) {
    report.line(key, fmt::format("{:.3f}", value), value);
  };
  const auto steps = static_cast<double>(run.after.steps - run.before.steps);
  count("requests_done", run.ended);
  report.line("seconds", fmt::format("{:.2f}", run.seconds), run.seconds);
  rate("requests_per_s", static_cast<double>(run.ended) / run.seconds);
  rate("prompt_tok_per_s", static_cast<double>(work.prompt_tokens()) / run.seconds);
  if (run.steady_seconds > 0) {
    const double steady = static_cast<double>(run.steady_tokens) / run.steady_seconds;
    report.line("steady_tok_per_s", fmt::format("{:.1f} over {:.1f} s", steady, run.steady_seconds),
                steady);
  }
  count("steps", run.after.steps - run.before.steps);
  report.line("step_ms", fmt::format("{:.3f}", 1e3 * run.seconds / steps),
              1e3 * run.seconds / steps);
  rate("sequences_per_step",
       static_cast<double>(run.after.drawn_rows - run.before.drawn_rows) / steps);
  rate("prompt_tokens_per_step",
       static_cast<double>(run.after.prompt_tokens - run.before.prompt_tokens) / steps);
  share("prompt_steps_time", run.prompt_seconds / run.seconds);
  share("decode_steps_time", 1 - run.prompt_seconds / run.seconds);
  count("most_running", run.most_running);
  count("preemptions", run.after.preemptions - run.before.preemptions);
  count("tokens_again", run.after.lost_tokens - run.before.lost_tokens);
}

/// As many sequences, and as much cache, as the flags say or the memory has room for.
InferenceShape offline_shape(const OfflineBench& o, const OfflineWork& work, InferenceShape shape,
                             const Backend& backend, Backend& planner) {
  shape.context = work.context();
  const int64_t all = memory_limit(backend.memory()), limit = all - all / kMarginShare;
  const auto fill = [&](int64_t chunk) {
    shape.chunk = chunk;
    shape.sequences = std::min(o.requests, o.sequences > 0 ? o.sequences : kMostSequences);
    shape.cache_tokens = o.cache_tokens;
    const double held = o.sequences > 0 ? 1 : work.cached_tokens(backend.page_tokens());
    shape = fill_memory(planner, shape, held, limit);
  };
  fill(o.chunk);
  if (o.chunk > 0) return shape;
  // Enough that ended answers' places are taken again at once.
  const double wanted = kMorePrompts * static_cast<double>(shape.sequences) *
                        static_cast<double>(work.prompt_tokens()) /
                        static_cast<double>(work.answer_tokens());
  fill(std::max(backend.prompt_tokens(), static_cast<int64_t>(wanted)));
  return shape;
}

void run_bench_offline(const OfflineBench& o) {
  const OfflineWork work(o);
  const ModelSource source = open_source(o.common, {.model = o.model});
  ModelConfig config = source.config();
  if (o.layers) config.num_layers = *o.layers;
  config.max_positions = std::max(config.max_positions, work.context());
  config.validate("--model");
  const auto backend = o.common.open_device();
  const BenchModel chosen =
      choose_bench_model(o.common, source, config, *backend, o.layers.has_value(), work.context());
  const auto planner = make_planning_backend(backend.get());
  const InferenceShape shape =
      offline_shape(o, work, {.config = config, .options = chosen.options}, *backend, *planner);
  require_memory(*planner, shape, backend->memory());
  const MemoryPlan plan = plan_inference(*planner, shape);
  Report report(o.common.json);
  report.json() = {{"bench", "serve-offline"},
                   {"model", o.model},
                   {"layers", config.num_layers},
                   {"device", backend->description()},
                   {"dtype", o.common.dtype},
                   {"quantize_base", o.common.quantize_base},
                   {"seed", o.common.seed},
                   {"requests", work.size()},
                   {"prompt_tokens", work.prompt_tokens()},
                   {"tokens", work.answer_tokens()}};
  const auto per_request = [&](int64_t tokens) {
    return static_cast<double>(tokens) / static_cast<double>(work.size());
  };
  if (!o.common.json)
    fmt::print(
        "bench serve-offline: {} with {} layers{}, {} requests of {:.1f} + {:.1f} tokens, --dtype "
        "{}, {}\n",
        o.model, config.num_layers,
        o.common.quantization() ? fmt::format(" in {}", o.common.quantize_base) : "", work.size(),
        per_request(work.prompt_tokens()), per_request(work.answer_tokens()), o.common.dtype,
        backend->description());
  Ceilings ceilings = measure_ceilings(*backend, chosen.precision, o.common.threads);
  Mixtral model(*backend, config, chosen.options);
  fill_bench_model(o.common, source, chosen, *backend, model);
  const Engine::Options options{.context = shape.context,
                                .sequences = shape.sequences,
                                .cache_tokens = shape.cache_tokens,
                                .chunk = shape.chunk,
                                .arena = plan.bytes_of("activations and logits") -
                                         shape.sequences * config.vocab_size *
                                             size_of(ops::statistics_dtype(chosen.options.compute)),
                                .share_pages = false};
  std::optional<Engine> engine;
  engine.emplace(*backend, model, options);
  // What is done once alone is no step's time.
  for (int64_t i = 0; i < o.warmup; ++i)
    engine->submit(work.request(config, work.size() + i, kWarmupTokens));
  engine->run();
  std::vector<Request> requests;
  requests.reserve(static_cast<size_t>(work.size()));
  for (int64_t i = 0; i < work.size(); ++i) requests.push_back(work.request(config, i));
  const bool shown = !o.common.quiet && !o.common.json && ::isatty(STDERR_FILENO) != 0;
  const OfflineRun run = serve_offline(*engine, std::move(requests), shown);
  const int64_t peak = peak_memory(*backend);  // of a GPU: what is in use now
  engine.reset();
  ceilings.raise(measure_ceilings(*backend, chosen.precision, o.common.threads));
  report_ceilings(report, ceilings);
  const auto tokens = static_cast<double>(run.tokens);
  report_rate(report, ceilings, run.seconds, tokens, work.flops(config) / tokens);
  report_offline(run, work, report);
  report.line("sequences", fmt::format("{}", shape.sequences),
              static_cast<double>(shape.sequences));
  report.line("cache_tokens", fmt::format("{}", shape.cache_tokens),
              static_cast<double>(shape.cache_tokens));
  report.line("chunk", fmt::format("{}", shape.chunk), static_cast<double>(shape.chunk));
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  report.line("planned_gib", fmt::format("{:.3f}", gib(plan.total())), gib(plan.total()));
  report.line("peak_gib", fmt::format("{:.3f}", gib(peak)), gib(peak));
  if (o.profile) {
    Profiler profiler(*backend);
    Engine::Options profiled = options;
    profiled.profiler = &profiler;
    engine.emplace(*backend, model, profiled);
    profile_step(*engine, profiler, work, config, run.most_running);
    report_profile(report, ceilings, profiler);
  }
  if (o.common.json) fmt::print("{}\n", report.json().dump());
}

}  // namespace

void add_bench_offline_command(cli::App& bench) {
  auto o = std::make_shared<OfflineBench>();
  cli::App* command = bench.add_subcommand(
      "serve-offline", "Measure how fast this program answers many requests that are all there");
  command->footer(kOfflineExamples);
  command->add_option("-m,--model", o->model, "A built-in configuration or a model directory")
      ->capture_default_str();
  command->add_option("--layers", o->layers, "Instead of the configuration's")
      ->check(cli::Range(int64_t{1}, int64_t{1024}));
  command->add_option("--requests", o->requests, "Requests that are measured")
      ->capture_default_str()
      ->check(cli::Range(1, 1'000'000));
  add_length_options(*command, o->prompt_tokens, o->max_tokens);
  command
      ->add_option("--sequences", o->sequences,
                   "Under way at once, at most; 0: as many as fit into memory")
      ->capture_default_str()
      ->check(cli::Range(int64_t{0}, kMostSequences));
  command
      ->add_option("--cache-tokens", o->cache_tokens,
                   "Room of the key-value cache; 0: what the memory has beside the weights")
      ->capture_default_str()
      ->check(cli::Range(int64_t{0}, int64_t{1} << 32));
  command
      ->add_option("--chunk", o->chunk,
                   "Tokens of prompts in a step, at most; 0: as many as keep all places taken")
      ->capture_default_str()
      ->check(cli::Range(int64_t{0}, int64_t{1} << 20));
  command->add_option("--warmup", o->warmup, "Requests before these, of 4 tokens each")
      ->capture_default_str()
      ->check(cli::Range(0, 100'000));
  command->add_flag("--profile", o->profile,
                    "Show the time of one step with all places taken, by kernel");
  o->common.add_model_flags(*command);
  o->common.add_cache_dtype(*command);
  o->common.add_to(*command);
  command->callback([o, &bench] {
    refuse_flags_in_front(bench, "serve-offline");
    run_bench_offline(*o);
  });
}

}  // namespace mixtral
