// An engine that speculates draws what one that does not draws, to the bit, whatever it drafts, and
// loses no page of the cache. How much it drafts follows from the time that it measures.
#include "infer/speculation.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/engine.h"
#include "infer/prompt_lookup.h"
#include "tests/support/files.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

constexpr uint64_t kSeed = 20261130;
constexpr int32_t kVocabulary = 61;

TEST(PromptLookup, FindsWhatFollowedTheLongestEqualEnd) {
  const auto tokens = [](std::vector<int32_t> all, int64_t most) {
    return look_up(all, most).tokens;
  };
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(tokens({1, 2, 3, 4, 5, 1, 2}, 3), (Tokens{3, 4, 5}));
  EXPECT_EQ(tokens({1, 2, 3, 4, 5, 1, 2}, 1), (Tokens{3}));
  EXPECT_EQ(tokens({1, 2, 3, 4, 5, 1, 2}, 0), (Tokens{}));
  // The latest of several, but a longer one before.
  EXPECT_EQ(tokens({1, 2, 7, 1, 2, 8, 1, 2}, 1), (Tokens{8}));
  EXPECT_EQ(tokens({9, 1, 2, 7, 1, 2, 8, 9, 1, 2}, 1), (Tokens{7}));
  // One token is not enough.
  EXPECT_EQ(tokens({1, 2, 3, 2}, 2), (Tokens{}));
  EXPECT_EQ(tokens({1}, 2), (Tokens{}));
  EXPECT_EQ(tokens({}, 2), (Tokens{}));
  // A short period goes on.
  EXPECT_EQ(tokens({5, 5, 5}, 4), (Tokens{5, 5, 5, 5}));
  EXPECT_EQ(tokens({1, 2, 3, 1, 2, 3, 1, 2}, 7), (Tokens{3, 1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(look_up(std::vector<int32_t>{1, 2, 3, 1, 2, 3, 1, 2}, 1).matched, 5);
}

/// A budget that was told of steps of so many rows, each often enough.
class DraftBudgetTest : public ::testing::Test {
 protected:
  void measure(int64_t rows, double seconds) {
    for (int i = 0; i < 8; ++i) budget_.note_step(rows, seconds);
  }
  std::vector<int64_t> choose(std::vector<DraftCandidate> candidates, int64_t decoding = 0) {
    return budget_.choose(std::max(decoding, std::ssize(candidates)), candidates);
  }
  DraftBudget budget_{{.rows = 64}};
  using Chosen = std::vector<int64_t>;
};

TEST_F(DraftBudgetTest, MeasuresFirstAndThenTries) {
  EXPECT_EQ(choose({{.most = 4, .chance = 0.9}}), Chosen{0});
  measure(1, 1.0);
  EXPECT_EQ(choose({{.most = 4, .chance = 0.9}}), Chosen{4});  // what more rows cost is not known
  EXPECT_EQ(choose({{.most = 0, .chance = 0.9}}), Chosen{0});
}

TEST_F(DraftBudgetTest, TakesWhatLetsMostTokensBeAcceptedInASecond) {
  // Every further row costs a fifth of a step.
  for (int64_t rows = 1; rows <= 9; ++rows) measure(rows, 1 + 0.2 * static_cast<double>(rows - 1));
  EXPECT_EQ(choose({{.most = 8, .chance = 0.98}}), Chosen{8});
  // 1.5 / 1.2 = 1.25, 1.75 / 1.4 = 1.25, 1.875 / 1.6 = 1.17
  EXPECT_LE(choose({{.most = 8, .chance = 0.5}}).front(), 2);
  EXPECT_GE(choose({{.most = 8, .chance = 0.5}}).front(), 1);
  EXPECT_EQ(choose({{.most = 8, .chance = 0.1}}), Chosen{0});  // 1.1 / 1.2
  // Of several sequences, those with the better chance.
  const Chosen chosen = choose({{.most = 3, .chance = 0.05}, {.most = 3, .chance = 0.98}});
  EXPECT_EQ(chosen, (Chosen{0, 3}));
}

TEST_F(DraftBudgetTest, WhereRowsCostNothingItTakesAll) {
  measure(1, 1.0);
  measure(9, 1.0);
  EXPECT_EQ(choose({{.most = 8, .chance = 0.3}}), Chosen{8});
}

TEST_F(DraftBudgetTest, KeepsToTheRowsThatThereAre) {
  DraftBudget budget({.rows = 5, .adapt = false});
  const std::vector<DraftCandidate> candidates{{.most = 4, .chance = 0.5},
                                               {.most = 4, .chance = 0.5}};
  const Chosen chosen = budget.choose(2, candidates);
  EXPECT_EQ(chosen[0] + chosen[1], 5);
}

TEST_F(DraftBudgetTest, TriesAgainMoreAndMoreSeldomAndGoesOnWhereItGains) {
  measure(1, 1.0);
  for (int64_t rows = 2; rows <= 5; ++rows) measure(rows, 10.0);
  std::vector<int64_t> tries;
  const auto run = [&](int64_t steps, double seconds) {
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t taken = choose({{.most = 4, .chance = 0.9}}).front();
      if (taken > 0) tries.push_back(i);
      budget_.note_step(1 + taken, taken > 0 ? seconds : 1.0);
    }
  };
  run(1000, 10.0);
  ASSERT_GE(tries.size(), 3U);
  EXPECT_LE(tries.size(), 6U);
  for (size_t i = 2; i < tries.size(); ++i)
    EXPECT_GT(tries[i] - tries[i - 1], tries[i - 1] - tries[i - 2]);
  tries.clear();
  run(10000, 1.1);  // now rows are cheap: after some tries it knows
  EXPECT_GT(tries.size(), 1000U);
}

TEST_F(DraftBudgetTest, CountsTheTimeOfDrafting) {
  measure(1, 1.0);
  measure(5, 1.0);
  EXPECT_EQ(choose({{.most = 4, .chance = 0.9}}), Chosen{4});
  for (int i = 0; i < 8; ++i) budget_.note_drafting(4, 8.0);
  for (int i = 0; i < 8; ++i) budget_.note_drafting(1, 2.0);
  EXPECT_EQ(choose({{.most = 4, .chance = 0.9}}), Chosen{0});
}

struct Rig {
  explicit Rig(const std::string& device, int64_t window = 0, std::string_view format = "off")
      : backend(make_backend(device, 2)),
        model(*backend, testing::small_config(kVocabulary, window), options(format)) {
    initialise(model, kSeed);
  }
  static Mixtral::Options options(std::string_view format) {
    if (format == "bf16") return {.weights = Dtype::bf16};
    return {.quantization = ops::find_weight_format(format), .operands = ops::Operands::as_weight};
  }
  void initialise(Mixtral& drawn, uint64_t seed) const {
    nn::initialise(
        *backend, drawn.parameters(),
        {.seed = seed, .deviation = 0.3, .residual_deviation = 0.3, .embedding_deviation = 1});
  }
  std::unique_ptr<Backend> backend;
  Mixtral model;
};

std::vector<int32_t> draw_tokens(RandomStream& random, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>(random.below(kVocabulary)));
  return tokens;
}

/// What a request's functions were told.
struct Outcome {
  std::vector<int32_t> ids;
  std::vector<double> log_probabilities;
  std::vector<int32_t> best, experts;
  FinishReason reason = FinishReason::cancelled;
  friend bool operator==(const Outcome&, const Outcome&) = default;
  friend void PrintTo(const Outcome& o, std::ostream* out) {
    *out << fmt::format("{} ({})", fmt::join(o.ids, ","), name(o.reason));
  }
};

/// Requests of all kinds. Many repeat themselves, so that there is something to look up.
std::vector<Request> requests() {
  RandomStream random(kSeed);
  const std::vector<int32_t> common = draw_tokens(random, 35);
  std::vector<Request> all;
  const auto add = [&](int64_t length, int64_t period, GenerationOptions options) -> Request& {
    Request request{.prompt = draw_tokens(random, length), .options = std::move(options)};
    for (int64_t i = period; i < length && period > 0; ++i)
      request.prompt[static_cast<size_t>(i)] = request.prompt[static_cast<size_t>(i - period)];
    return all.emplace_back(std::move(request));
  };
  add(1, 0, {.sampling = {.temperature = 0}, .max_tokens = 60});
  add(30, 7, {.sampling = {.temperature = 0}, .max_tokens = 40}).best = 3;
  add(90, 30, {.sampling = {.temperature = 0.3F, .seed = 8}, .max_tokens = 50}).routes = true;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Request& request =
        add(9, 4, {.sampling = {.temperature = 0.6F, .top_k = 4, .seed = seed}, .max_tokens = 50});
    request.prompt.insert(request.prompt.begin(), common.begin(), common.end());
  }
  add(33, 11,
      {.sampling = {.temperature = 0.5F, .top_p = 0.8F, .repeat_penalty = 1.1F, .seed = 4},
       .repeat_last_n = 5,
       .max_tokens = 45});
  add(20, 5,
      {.sampling = {.temperature = 0.4F, .seed = 5},
       .max_tokens = 60,
       .logit_bias = {{3, 2.0F}, {4, -1.0F}},
       .presence_penalty = 0.1F,
       .frequency_penalty = 0.05F});
  add(16, 2, {.sampling = {.temperature = 0, .repeat_penalty = 2}, .max_tokens = 50});
  add(12, 3,
      {.sampling = {.temperature = 0.8F, .min_p = 0.05F, .seed = 6},
       .max_tokens = 80,
       .stop_ids = {1, 2, 3}});
  add(140, 20, {.sampling = {.temperature = 0}, .max_tokens = 100});  // the context ends it
  add(24, 6, {.sampling = {.temperature = 0}, .max_tokens = 1});
  return all;
}

RequestId submit(Engine& engine, Request request, Outcome& outcome) {
  request.on_token = [&outcome](const GeneratedToken& token) {
    outcome.ids.push_back(token.id);
    outcome.log_probabilities.push_back(token.log_probability);
    for (const TokenProbability& best : token.best) outcome.best.push_back(best.id);
    const auto& experts = token.routes.expert;
    outcome.experts.insert(outcome.experts.end(), experts.begin(), experts.end());
    return Next::go_on;
  };
  request.on_finish = [&outcome](FinishReason reason) { outcome.reason = reason; };
  return engine.submit(std::move(request));
}

std::vector<Outcome> run(Engine& engine, const std::vector<Request>& all) {
  std::vector<Outcome> outcomes(all.size());
  for (size_t i = 0; i < all.size(); ++i) submit(engine, all[i], outcomes[i]);
  engine.run();
  return outcomes;
}

/// A clock whose time means nothing.
std::function<double()> arbitrary_clock(uint64_t seed) {
  return [random = RandomStream(seed), now = 0.0]() mutable {
    return now += random.uniform() < 0.1 ? 10 * random.uniform() : random.uniform();
  };
}

struct Case {
  const char* device;
  int64_t window;
  const char* format = "off";
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.device << " " << c.window << " " << c.format;
  }
};
class SpeculationBits : public ::testing::TestWithParam<Case> {
 protected:
  Rig rig_{GetParam().device, GetParam().window, GetParam().format};

  /// All setups draw what an engine without speculation does.
  void expect_the_same(const SpeculationOptions& how, const std::string& what) {
    const std::vector<Request> all = requests();
    Engine plain(*rig_.backend, rig_.model);
    const std::vector<Outcome> expected = run(plain, all);
    EXPECT_EQ(plain.usage().speculation.drafted, 0);
    using Padding = Engine::Padding;
    const std::vector<std::pair<const char*, Engine::Options>> setups{
        {"one at a time", {}},
        {"three at a time", {.sequences = 3, .share_pages = false}},
        {"all at once", {.sequences = 16}},
        {"padded", {.sequences = 13, .padding = Padding::powers_of_two}},
        {"short slices", {.sequences = 5, .chunk = 11, .padding = Padding::powers_of_two}},
        {"hardly any room", {.sequences = 8, .cache_tokens = 176, .chunk = 48}},
        {"experts are counted", {.sequences = 4, .count_experts = true}},
    };
    for (const auto& [setup, base] : setups) {
      Engine::Options options = base;
      options.speculation = how;
      Engine engine(*rig_.backend, rig_.model, options);
      EXPECT_TRUE(engine.speculates());
      for (const char* time : {"", ", again"}) {
        const std::vector<Outcome> outcomes = run(engine, all);
        for (size_t i = 0; i < all.size(); ++i)
          EXPECT_EQ(outcomes[i], expected[i]) << what << ", " << setup << time << ", request " << i;
      }
      const Engine::Usage usage = engine.usage();
      if (!how.adapt) {
        EXPECT_GT(usage.speculation.accepted, 0) << what << ", " << setup;
      }
      EXPECT_GE(usage.speculation.drafted, usage.speculation.accepted) << what << ", " << setup;
      EXPECT_EQ(usage.used_pages, 0) << what << ", " << setup;
      engine.forget_prefixes();
      EXPECT_EQ(engine.usage().kept_pages, 0) << what << ", " << setup;
      EXPECT_EQ(engine.cache().free_pages(), engine.cache().pages()) << what << ", " << setup;
    }
  }
};

TEST_P(SpeculationBits, LookedUpDraftsChangeNothing) {
  const bool slow = GetParam().format[0] == 'q';
  for (const int64_t tokens : slow ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 3, 8})
    expect_the_same({.tokens = tokens, .adapt = false}, fmt::format("{} tokens", tokens));
  for (const uint64_t seed : {1, 2})
    expect_the_same({.tokens = 5, .seconds = arbitrary_clock(seed)}, fmt::format("clock {}", seed));
}

TEST_P(SpeculationBits, ADraftModelChangesNothing) {
  Mixtral other(*rig_.backend, testing::small_config(kVocabulary, 0, 1), {});
  rig_.initialise(other, kSeed + 1);
  for (Mixtral* draft : {&other, &rig_.model}) {
    const std::string what = draft == &other ? "another model" : "the model itself";
    expect_the_same({.tokens = 4, .draft_model = draft, .adapt = false}, what);
    if (GetParam().format[0] == 'q') continue;
    expect_the_same({.tokens = 4, .draft_model = draft, .seconds = arbitrary_clock(3)}, what);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SpeculationBits,
                         ::testing::Values(Case{"ref", 0}, Case{"cpu", 0}, Case{"cpu", 7},
                                           Case{"cpu", 40}, Case{"cpu", 0, "bf16"},
                                           Case{"cpu", 0, "q8_0"}, Case{"cpu", 0, "q4_0"}),
                         [](const auto& c) {
                           return fmt::format("{}_window_{}_{}", c.param.device, c.param.window,
                                              c.param.format);
                         });

class SpeculationTest : public ::testing::Test {
 protected:
  Rig rig_{"cpu"};
  RandomStream random_{kSeed};
};

TEST_F(SpeculationTest, AModelThatDraftsForItselfIsAlwaysRight) {
  std::vector<Request> all = requests();
  Engine engine(
      *rig_.backend, rig_.model,
      {.sequences = 16, .speculation = {.tokens = 4, .draft_model = &rig_.model, .adapt = false}});
  run(engine, all);
  const SpeculationCounts counts = engine.usage().speculation;
  EXPECT_GT(counts.drafted, 200);
  EXPECT_EQ(counts.accepted, counts.drafted);
}

TEST_F(SpeculationTest, ADraftModelNeedsTheSameVocabulary) {
  ModelConfig config = testing::small_config(kVocabulary);
  config.vocab_size = kVocabulary + 1;
  const Mixtral other(*rig_.backend, config, {});
  const std::string message = message_of([&] {
    Engine(*rig_.backend, rig_.model, {.speculation = {.tokens = 2, .draft_model = &other}});
  });
  EXPECT_NE(message.find("62 tokens"), std::string::npos) << message;
  EXPECT_NE(message.find("61"), std::string::npos) << message;
}

TEST_F(SpeculationTest, ConstrainedSequencesDoNotSpeculateAndOthersDoBesideThem) {
  const Request wanted{.prompt = {1, 2, 3, 1, 2, 3, 1, 2},
                       .options = {.sampling = {.temperature = 0},
                                   .max_tokens = 40,
                                   .logit_bias = {{5, 4.0F}}}};  // it repeats itself
  const auto run_both = [&](const SpeculationOptions& how) {
    Engine engine(*rig_.backend, rig_.model, {.sequences = 2, .speculation = how});
    std::vector<Outcome> outcomes(2);
    Request masked = wanted;
    masked.allow = [&outcomes](TokenMask& mask) {
      const auto drawn = static_cast<int32_t>(outcomes[0].ids.size());
      for (int32_t v = 0; v < kVocabulary; ++v)
        if (v % 3 != drawn % 3) mask[static_cast<size_t>(v / 32)] &= ~(uint32_t{1} << (v % 32));
    };
    submit(engine, std::move(masked), outcomes[0]);
    while (engine.has(1) && outcomes[0].ids.size() < 20) engine.step();
    EXPECT_EQ(engine.usage().speculation.drafted, 0);
    submit(engine, wanted, outcomes[1]);  // takes a row that a mask may stand in
    engine.run();
    submit(engine, wanted, outcomes.emplace_back());
    engine.run();
    if (how.tokens > 0) {
      EXPECT_GT(engine.usage().speculation.accepted, 0);
    }
    return outcomes;
  };
  EXPECT_EQ(run_both({.tokens = 4, .adapt = false}), run_both({}));
}

TEST_F(SpeculationTest, AReceiverMayStopAmongAcceptedTokens) {
  const Request wanted{.prompt = {4, 5, 6, 4, 5, 6, 4, 5},
                       .options = {.sampling = {.temperature = 0}, .max_tokens = 100}};
  Engine plain(*rig_.backend, rig_.model);
  const Outcome all = run(plain, {wanted}).front();
  for (const Next end : {Next::stop, Next::cancel})
    for (size_t length = 1; length <= 30; ++length) {
      Engine engine(*rig_.backend, rig_.model, {.speculation = {.tokens = 7, .adapt = false}});
      std::vector<int32_t> ids;
      std::optional<FinishReason> reason;
      Request request = wanted;
      request.on_token = [&](const GeneratedToken& token) {
        ids.push_back(token.id);
        return ids.size() == length ? end : Next::go_on;
      };
      request.on_finish = [&](FinishReason why) { reason = why; };
      engine.submit(std::move(request));
      engine.run();
      ASSERT_EQ(ids.size(), length);
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), all.ids.begin()));
      EXPECT_EQ(reason, end == Next::stop ? FinishReason::stop : FinishReason::cancelled);
      EXPECT_EQ(engine.usage().used_pages, 0);
    }
}

TEST_F(SpeculationTest, KeepsNoPageWithDraftTokensForOthers) {
  // A page that is full of accepted tokens is kept; what follows it in the cache's table is not.
  Engine engine(*rig_.backend, rig_.model,
                {.sequences = 2, .speculation = {.tokens = 8, .adapt = false}});
  Request wanted{.prompt = {7, 8, 9, 7, 8, 9, 7, 8},
                 .options = {.sampling = {.temperature = 0}, .max_tokens = 80}};
  const Outcome first = run(engine, {wanted}).front();
  std::vector<int32_t> longer = wanted.prompt;
  longer.insert(longer.end(), first.ids.begin(), first.ids.end());
  Engine plain(*rig_.backend, rig_.model);
  for (const size_t length : {20U, 33U, 50U, 87U}) {
    Request again{.prompt = {longer.begin(), longer.begin() + static_cast<std::ptrdiff_t>(length)},
                  .options = {.sampling = {.temperature = 0}, .max_tokens = 20}};
    EXPECT_EQ(run(engine, {again}), run(plain, {again})) << length;
  }
}

TEST_F(SpeculationTest, TakesDraftsWhereTheyGainTimeAndLeavesThemWhereTheyLose) {
  const Request wanted{.prompt = {1, 2, 3, 1, 2, 3, 1, 2},
                       .options = {.sampling = {.temperature = 0},
                                   .max_tokens = 140,
                                   .logit_bias = {{5, 100.0F}}}};  // it repeats itself
  for (const double cost : {0.01, 20.0}) {                         // of a draft token, in steps
    Engine* engine = nullptr;
    double now = 0;
    int64_t seen = 0;
    SpeculationOptions how{.tokens = 4, .seconds = [&] {
                             const int64_t drafted =
                                 engine ? engine->usage().speculation.drafted : 0;
                             now += 1 + cost * static_cast<double>(drafted - seen);
                             seen = drafted;
                             return now;
                           }};
    Engine speculating(*rig_.backend, rig_.model, {.speculation = how});
    engine = &speculating;
    for (int i = 0; i < 5; ++i) run(speculating, {wanted});
    const SpeculationCounts counts = speculating.usage().speculation;
    if (cost < 1) {
      EXPECT_GT(counts.accepted, 300);
      EXPECT_GT(counts.gain(), 1.5);
    } else {
      EXPECT_GT(counts.drafted, 0);
      EXPECT_LT(counts.drafted, 80);
    }
  }
}

TEST(SpeculationLeaks, NoRandomSequenceOfSubmitCancelAndStepLosesAPage) {
  ModelConfig config = testing::small_config(kVocabulary, 0, 1);
  config.hidden_size = 8;
  config.intermediate_size = 8;
  config.num_heads = 1;
  config.num_kv_heads = 1;
  config.num_experts = 2;
  config.experts_per_token = 1;
  const auto backend = make_backend("cpu", 1);
  for (const int64_t window : {0, 10})
    for (const bool drafts : {false, true}) {
      config.sliding_window = window;
      Mixtral model(*backend, config, {}), draft(*backend, config, {});
      nn::initialise(*backend, model.parameters(), {.seed = kSeed, .deviation = 0.3});
      nn::initialise(*backend, draft.parameters(), {.seed = kSeed, .deviation = 0.31});
      Engine engine(*backend, model,
                    {.context = 64,
                     .sequences = 4,
                     .cache_tokens = 128,
                     .chunk = 24,
                     .speculation = {.tokens = 5,
                                     .draft_model = drafts ? &draft : nullptr,
                                     .seconds = arbitrary_clock(kSeed)}});
      RandomStream random(kSeed);
      int64_t finished = 0;
      for (int round = 0; round < 2500; ++round) {
        std::vector<RequestId> ids;
        const uint64_t operations = 1 + random.below(8);
        for (uint64_t i = 0; i < operations; ++i) {
          const uint64_t choice = random.below(4);
          if (choice == 0 && !ids.empty()) {
            engine.cancel(ids[random.below(ids.size())]);
          } else if (choice <= 1) {
            Request request{.prompt = std::vector<int32_t>(1 + random.below(60), 1)};
            request.prompt.back() = static_cast<int32_t>(random.below(kVocabulary));
            request.prompt[request.prompt.size() / 2] = static_cast<int32_t>(random.below(3));
            request.options.sampling.temperature = 0.2F * static_cast<float>(random.below(3));
            request.options.max_tokens = 1 + static_cast<int64_t>(random.below(20));
            if (random.below(4) == 0) request.allow = [](TokenMask&) {};
            request.on_finish = [&](FinishReason) { ++finished; };
            ids.push_back(engine.submit(std::move(request)));
          } else {
            engine.step();
          }
        }
        if (random.below(8) == 0) engine.run();
        for (const RequestId id : ids) engine.cancel(id);
        const Engine::Usage usage = engine.usage();
        ASSERT_EQ(usage.used_pages, 0) << "round " << round << ", seed " << kSeed;
        ASSERT_EQ(usage.running + usage.waiting, 0) << "round " << round;
      }
      EXPECT_GT(finished, 200);
      EXPECT_GT(engine.usage().speculation.accepted, 0);
      engine.forget_prefixes();
      EXPECT_EQ(engine.cache().free_pages(), engine.cache().pages());
    }
}

}  // namespace
}  // namespace mixtral
