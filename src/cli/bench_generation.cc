#include "cli/bench_generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "backends/registry.h"
#include "cli/bench_model.h"
#include "infer/engine.h"
#include "infer/inference_plan.h"
#include "model/expert_cache.h"
#include "open/expert_streaming.h"
#include "train/trainer.h"

namespace mixtral {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLeastBytes = 128 << 20;  // of weights that no cache holds

/// Bytes of weights that a step of so many sequences reads on average: of the experts, those that
/// at least one of them is routed to. `streamed` are experts that are no parameters.
double step_bytes(Mixtral& model, int64_t sequences, const ExpertCache* streamed) {
  const ModelConfig& config = model.config();
  const double idle =
      1 - static_cast<double>(config.experts_per_token) / static_cast<double>(config.num_experts);
  const double used = 1 - std::pow(idle, static_cast<double>(sequences));
  double bytes = streamed ? used * static_cast<double>(streamed->sizes().all_bytes()) : 0;
  model.for_each_parameter([&](nn::Parameter& p) {
    // The embedding is read a row at a time, unless it is the head, too.
    if (p.role == nn::Role::embedding && !config.tie_embeddings) return;
    const auto all = static_cast<double>(p.packed ? p.packed.bytes() : p.value.bytes());
    bytes += p.shape.rank() == 3 ? used * all : all;
  });
  return bytes;
}

/// Bytes of the cache that a step of so many sequences with so many tokens each reads.
double cache_bytes(const ModelConfig& config, ops::CacheType type, int64_t sequences,
                   double tokens) {
  if (config.sliding_window > 0)
    tokens = std::min(tokens, static_cast<double>(config.sliding_window));
  return 2 *
         static_cast<double>(size_of(stored_dtype(type)) * config.num_layers * config.num_kv_heads *
                             ops::cached_width(type, config.head_dim) * sequences) *
         tokens;
}

/// Prompts that are read and continued again and again, each time other tokens.
class Work {
 public:
  Work(const BenchOptions& o, const ModelConfig& config)
      : config_(config),
        decode_(o.work == "decode"),
        sequences_(o.batch),
        depth_(o.depth),
        // What decode measures comes after the prompt.
        prompt_(decode_ ? (o.depth > 0 ? o.depth : o.context) : o.depth + o.context),
        tokens_(decode_ ? o.tokens : 1) {}

  int64_t sequences() const { return sequences_; }
  int64_t prompt() const { return prompt_; }
  int64_t context() const { return prompt_ + tokens_ + 1; }
  /// Pages that hold a prompt's beginning are kept for its second reading.
  Engine::Options engine_options(Profiler* profiler = nullptr, int64_t draft_tokens = 0) const {
    return {.context = context(),
            .sequences = sequences_,
            .lone_chunk = lone_chunk_,
            .share_pages = !decode_ && depth_ > 0,
            .profiler = profiler,
            .speculation = {.tokens = draft_tokens}};
  }

  struct Run {
    double seconds = 0, tokens = 0;  // tokens drawn (decode) or read (prefill) in that time
    ExpertCache::Figures experts;    // of streamed experts, in that time
  };
  /// Notes what happens to them from now on.
  void watch(const ExpertCache* experts) { experts_ = experts; }
  /// Engine::Options::lone_chunk of its engines.
  void set_lone_chunk(int64_t tokens) { lone_chunk_ = tokens; }
  Run once(Engine& engine) {
    const auto seed = next_seed();
    return decode_ ? decode(engine, seed) : prefill(engine, seed);
  }
  /// The last run's work again, by another engine.
  Run again(Engine& engine) {
    --runs_;
    return once(engine);
  }

  /// Notes the ops of one decoding step, as it is replayed, or of one reading of the prompts.
  void profile(Engine& engine, Profiler& profiler) {
    const auto seed = next_seed();
    if (!decode_) {
      fill(engine, seed);
      profiler.clear();
      submit(engine, seed);
      engine.run();
      return;
    }
    begin(engine, seed);
    // A step of this shape is computed directly at first, and recorded when it comes again.
    engine.step();
    profiler.clear();
    engine.step();
  }

 private:
  ExpertCache::Figures figures() const {
    return experts_ ? experts_->figures() : ExpertCache::Figures();
  }

  uint64_t next_seed() { return static_cast<uint64_t>(runs_++ * sequences_) + 1; }

  std::vector<int32_t> prompt_of(uint64_t seed, int64_t length) const {
    return random_tokens(config_, length, seed);
  }

  void submit(Engine& engine, uint64_t seed) {
    begun_ = drawn_ = reused_ = 0;
    ended_ = false;
    for (int64_t i = 0; i < sequences_; ++i) {
      Request request{.prompt = prompt_of(seed + static_cast<uint64_t>(i), prompt_)};
      request.options = {.sampling = {.temperature = 0}, .max_tokens = tokens_};
      request.on_begin = [this](int64_t reused) { reused_ += reused; };
      request.on_token = [this, first = true](const GeneratedToken&) mutable {
        ++(std::exchange(first, false) ? begun_ : drawn_);
        return Next::go_on;
      };
      request.on_finish = [this](FinishReason) { ended_ = true; };
      engine.submit(std::move(request));
    }
  }

  /// Reads the tokens that are to be in the cache before.
  void fill(Engine& engine, uint64_t seed) {
    if (depth_ == 0) return;
    for (int64_t i = 0; i < sequences_; ++i) {
      std::vector<int32_t> prompt = prompt_of(seed + static_cast<uint64_t>(i), prompt_);
      prompt.resize(static_cast<size_t>(depth_));
      Request request{.prompt = std::move(prompt)};
      request.options = {.sampling = {.temperature = 0}, .max_tokens = 0};
      engine.submit(std::move(request));
    }
    engine.run();
  }

  Run prefill(Engine& engine, uint64_t seed) {
    fill(engine, seed);
    const ExpertCache::Figures before = figures();
    const auto start = Clock::now();
    submit(engine, seed);
    engine.run();
    const std::chrono::duration<double> time = Clock::now() - start;
    if (depth_ > 0 && reused_ == 0)
      throw UsageError(
          fmt::format("--depth {}: nothing of a prompt is kept here before it is read again; give "
                      "more, and a model without a sliding window",
                      depth_));
    return {time.count(), static_cast<double>(sequences_ * prompt_ - reused_), figures() - before};
  }

  /// Reads the prompts.
  void begin(Engine& engine, uint64_t seed) {
    submit(engine, seed);
    while (begun_ < sequences_ && !ended_) engine.step();
    if (ended_)
      throw UsageError(
          fmt::format("--tokens {}: the first of {} sequences ends before the last one's prompt "
                      "is read; give more",
                      tokens_, sequences_));
  }

  Run decode(Engine& engine, uint64_t seed) {
    begin(engine, seed);
    const ExpertCache::Figures before = figures();
    const auto start = Clock::now();  // the prompts are not what is measured
    drawn_ = 0;
    while (!ended_) engine.step();
    const std::chrono::duration<double> time = Clock::now() - start;
    const auto drawn = static_cast<double>(drawn_);
    const ExpertCache::Figures seen = figures() - before;
    engine.run();
    return {time.count(), drawn, seen};
  }

  const ModelConfig& config_;
  const ExpertCache* experts_ = nullptr;
  bool decode_;
  int64_t sequences_, depth_, prompt_, tokens_;
  int64_t runs_ = 0, lone_chunk_ = 0;
  // Of the requests that are under way.
  int64_t begun_ = 0, drawn_ = 0, reused_ = 0;
  bool ended_ = false;
};

/// Tokens a second with and without speculation, in turn on the same prompts.
void report_speculation(const std::vector<double>& rates, const std::vector<double>& plain_rates,
                        const SpeculationCounts& counts, Report& report) {
  const double rate = median(rates), plain = median(plain_rates);
  report.line("speculate_tok_per_s", fmt::format("{:.2f}", rate), rate);
  report.line("speculate_ratio", fmt::format("{:.2f}", rate / plain), rate / plain);
  report.line("draft_tokens", fmt::format("{}, {} accepted", counts.drafted, counts.accepted),
              static_cast<double>(counts.drafted));
}

/// What was read of streamed experts in the run of median time, beside the rate of what they come
/// from: the disk, or copies from the host's memory.
void report_experts(ExpertCache& experts, const Work::Run& run, Report& report) {
  constexpr double kMeasured = 3;  // seconds
  const ExpertCache::Figures& f = run.experts;
  const auto per_token = [&](double value) { return value / run.tokens; };
  const double rate = experts.measure_reading(kMeasured);
  const double found = static_cast<double>(f.found) / static_cast<double>(f.needed);
  const double bytes = per_token(static_cast<double>(f.bytes_read));
  report.line(
      "experts_in_memory",
      fmt::format("{} of {}", experts.places(), experts.sizes().layers * experts.sizes().experts),
      static_cast<double>(experts.places()));
  report.line("expert_hit_rate", fmt::format("{:.3f}", found), found);
  const double foretold = static_cast<double>(f.foretold) / static_cast<double>(f.needed);
  report.line("read_ahead_rate", fmt::format("{:.3f}", foretold), foretold);
  if (f.expected > 0) {
    const double right = static_cast<double>(f.right) / static_cast<double>(f.expected);
    report.line("right_guesses", fmt::format("{:.3f}", right), right);
  }
  // What guessing the experts of the token before would come to.
  const double repeated = static_cast<double>(f.repeated) / static_cast<double>(f.needed);
  report.line("repeated_experts", fmt::format("{:.3f}", repeated), repeated);
  report.line("read_gb_per_token", fmt::format("{:.3f}", bytes * 1e-9), bytes * 1e-9);
  report.line("waiting_s_per_token", fmt::format("{:.3f}", per_token(f.waiting)),
              per_token(f.waiting));
  report.line(experts.copies() ? "host_to_device_gb_per_s" : "disk_gb_per_s",
              fmt::format("{:.2f}", rate * 1e-9), rate * 1e-9);
  if (bytes == 0) return;
  const double bound = rate / bytes;
  report.line(
      experts.copies() ? "copy_bound_tok_per_s" : "disk_bound_tok_per_s",
      fmt::format("{:.2f} (reached: {:.0f}%)", bound, 100 * run.tokens / run.seconds / bound),
      bound);
}

void report_decoding(const Work& work, Mixtral& model, const ExpertCache* streamed,
                     const Ceilings& ceilings, double seconds, double tokens, bool gpu,
                     Report& report) {
  report.line("tok_per_s", fmt::format("{:.2f}", tokens / seconds), tokens / seconds);
  const auto sequences = static_cast<double>(work.sequences());
  const double steps = tokens / sequences / seconds;
  report.line("step_ms", fmt::format("{:.3f}", 1e3 / steps), 1e3 / steps);
  const double weights = step_bytes(model, work.sequences(), streamed);
  const double cache = cache_bytes(model.config(), model.options().cache_type(), work.sequences(),
                                   static_cast<double>(work.prompt()) + tokens / sequences / 2);
  const auto line = [&](const std::string& key, double bytes) {
    const double rate = bytes * steps;
    std::string text = fmt::format("{:.1f}", rate * 1e-9);
    // Fewer bytes may stay in a cache.
    if (weights >= kLeastBytes) {
      const double share = share_of(ceilings, "reading the weights", rate, ceilings.read);
      report.json()["share_of_read"] = share;
      text += fmt::format(" ({:.0f}% of reading", 100 * share);
      if (gpu) text += fmt::format(", {:.0f}% of copying", 100 * rate / ceilings.copy);
      text += ")";
    }
    report.line(key, text, rate * 1e-9);
  };
  line("weights_gb_per_s", weights);
  line("with_cache_gb_per_s", weights + cache);
}

}  // namespace

void bench_generation(const BenchOptions& o, const ModelSource& source, const ModelConfig& config,
                      Backend& backend, Report& report) {
  Work work(o, config);
  BenchModel chosen =
      choose_bench_model(o.common, source, config, backend, o.layers.has_value(), work.context());
  const Precision& precision = chosen.precision;
  Mixtral::Options& options = chosen.options;
  const auto planner = make_planning_backend(&backend);
  InferenceShape shape{.config = config,
                       .options = options,
                       // Two engines have a cache each.
                       .sequences = (o.speculate > 0 ? 2 : 1) * work.sequences(),
                       .context = work.context(),
                       .draft_tokens = o.speculate};
  shape = fit_lone_chunk(*planner, shape, backend.memory());
  work.set_lone_chunk(shape.lone_chunk);
  std::optional<ExpertStreaming> streaming;
  if (chosen.reads || backend.kind() == DeviceKind::gpu)
    streaming = plan_streaming(backend, {.model = source, .drawn = !chosen.reads}, shape,
                               backend.memory(), o.common.expert_memory);
  else if (o.common.expert_memory)
    throw UsageError(
        "--expert-memory: weights that are drawn cannot be read; name a model's files, or a GPU");
  else
    require_memory(*planner, shape, backend.memory());
  if (streaming) {
    options.stream_experts = shape.options.stream_experts = true;
    shape.expert_memory = streaming->memory;
    say(o.common, "note: " + describe(*streaming));
    if (!streaming->in_host) drop_cached_files(source.tensors());
  }
  const int64_t planned = plan_inference(*planner, shape).total();
  Ceilings ceilings = measure_ceilings(backend, precision, o.common.threads);
  const auto loading = Clock::now();
  Mixtral model(backend, config, options);
  fill_bench_model(o.common, source, chosen, backend, model);
  OpenedExperts opened;
  if (streaming)
    opened = open_experts(backend, model, *streaming, source,
                          {.random = !chosen.reads, .seed = o.common.seed});
  ExpertCache* const experts = opened.cache.get();
  const std::chrono::duration<double> load_time = Clock::now() - loading;
  if (experts) work.watch(experts);
  std::optional<Engine> engine, speculating;
  engine.emplace(backend, model, work.engine_options());
  if (o.speculate > 0)
    speculating.emplace(backend, model, work.engine_options(nullptr, o.speculate));
  std::vector<double> seconds, rates, plain_rates;
  double tokens = 0;
  std::vector<Work::Run> runs;
  for (int64_t run = 0; run < std::max<int64_t>(1, o.warmup) + o.steps; ++run) {
    const Work::Run one = work.once(*engine);
    tokens = one.tokens;
    const bool measured = run >= o.warmup;
    if (measured) {
      seconds.push_back(one.seconds);
      runs.push_back(one);
    }
    if (!speculating) continue;
    const Work::Run other = work.again(*speculating);
    if (!measured) continue;
    plain_rates.push_back(one.tokens / one.seconds);
    rates.push_back(other.tokens / other.seconds);
  }
  const SpeculationCounts counts =
      speculating ? speculating->usage().speculation : SpeculationCounts();
  engine.reset();
  speculating.reset();
  const double time = median(seconds);
  ceilings.raise(measure_ceilings(backend, precision, o.common.threads));
  // Codes are multiplied as integers.
  if (ceilings.int8 > 0 && precision.operands == ops::Operands::as_weight &&
      (options.quantization || !options.formats.empty()))
    ceilings.product = ceilings.int8;
  report_ceilings(report, ceilings);
  if (chosen.reads || experts)
    report.line("load_s", fmt::format("{:.3f}", load_time.count()), load_time.count());
  if (o.work == "decode") {
    report_decoding(work, model, experts, ceilings, time, tokens, backend.kind() == DeviceKind::gpu,
                    report);
    if (o.speculate > 0) report_speculation(rates, plain_rates, counts, report);
  } else {
    const double flops = reading_flops(config, o.depth, o.context, o.batch) / tokens;
    report_rate(report, ceilings, time, tokens, flops);
  }
  if (experts) {
    std::ranges::sort(runs, {}, &Work::Run::seconds);
    report_experts(*experts, runs[runs.size() / 2], report);
  }
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  report.line("planned_gib", fmt::format("{:.3f}", gib(planned)), gib(planned));
  const int64_t peak = peak_memory(backend);
  report.line("peak_gib", fmt::format("{:.3f}", gib(peak)), gib(peak));
  if (!o.profile) return;
  Profiler profiler(backend);
  engine.emplace(backend, model, work.engine_options(&profiler));
  work.profile(*engine, profiler);
  report_profile(report, ceilings, profiler);
}

}  // namespace mixtral
