// What an engine draws for a request is what a plain loop draws, to the bit, whatever else the
// engine does; and no page of the cache is lost.
#include "infer/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/methods.h"
#include "tests/support/files.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

constexpr uint64_t kSeed = 20261128;
constexpr int32_t kVocabulary = 61;

struct Drawn {
  std::vector<int32_t> ids;
  std::vector<double> log_probabilities;
  FinishReason reason = FinishReason::length;
  friend bool operator==(const Drawn&, const Drawn&) = default;
  friend void PrintTo(const Drawn& d, std::ostream* out) {
    *out << fmt::format("{} ({})", fmt::join(d.ids, ","), name(d.reason));
  }
};

struct Rig {
  /// With a format, its projections are quantized, and multiplied as inference does on a CPU.
  Rig(const std::string& device, int64_t window, std::string_view format = "off",
      std::optional<ops::CacheType> cache = std::nullopt)
      : backend(make_backend(device, 2)),
        model(*backend, testing::small_config(kVocabulary, window),
              {.quantization = ops::find_weight_format(format),
               .operands = ops::Operands::as_weight,
               .cache = cache}) {
    nn::initialise(
        *backend, model.parameters(),
        {.seed = kSeed, .deviation = 0.3, .residual_deviation = 0.3, .embedding_deviation = 1});
  }

  /// Logits [tokens, V] by one forward pass without a cache.
  std::vector<float> logits(const std::vector<int32_t>& tokens) {
    Arena arena(*backend);
    Context ctx(*backend, arena, Dtype::f32);
    ctx.set_operands(model.options().operands);
    HostBatch host;
    host.append(tokens);
    const Tensor hidden = model.forward(ctx, upload(ctx, host, kVocabulary, model.context()),
                                        nullptr, nullptr, nullptr);
    const Tensor out = ctx.allocate({hidden.dim(0), kVocabulary}, Dtype::f32);
    model.logits(ctx, hidden, out);
    std::vector<float> values(static_cast<size_t>(out.numel()));
    backend->download(out, Tensor(values.data(), out.shape(), Dtype::f32));
    return values;
  }

  /// A request's result by reading all tokens anew for each one, and drawing with one Sample.
  Drawn plain_loop(const Request& request, int64_t context) {
    Drawn result;
    std::vector<int32_t> tokens = request.prompt;
    const GenerationOptions& o = request.options;
    while (true) {
      const std::vector<float> all = logits(tokens);
      std::vector<float> last(all.end() - kVocabulary, all.end());
      ops::SamplingSettings settings = o.sampling;
      auto position = static_cast<int32_t>(tokens.size()) - 1;
      // A row of the history has all tokens, the latest at its place.
      std::vector<int32_t> history(static_cast<size_t>(std::max<int64_t>(1, o.repeat_last_n)), -1);
      for (int64_t p = 0; p <= position && o.repeat_last_n > 0; ++p)
        history[static_cast<size_t>(p % o.repeat_last_n)] = tokens[static_cast<size_t>(p)];
      int32_t id = 0;
      float log_probability = 0;
      backend->run(ops::Sample{
          .logits = Tensor(last.data(), {1, kVocabulary}, Dtype::f32),
          .settings = Tensor(&settings, {1, static_cast<int64_t>(sizeof settings)}, Dtype::u8),
          .history = Tensor(history.data(), {1, static_cast<int64_t>(history.size())}, Dtype::i32),
          .positions = Tensor(&position, {1}, Dtype::i32),
          .tokens = Tensor(&id, {1}, Dtype::i32),
          .log_probability = Tensor(&log_probability, {1}, Dtype::f32)});
      result.reason = FinishReason::stop;
      if (std::ranges::find(o.stop_ids, id) != o.stop_ids.end()) return result;
      result.ids.push_back(id);
      result.log_probabilities.push_back(static_cast<double>(log_probability));
      tokens.push_back(id);
      result.reason = FinishReason::length;
      if (static_cast<int64_t>(result.ids.size()) == o.max_tokens) return result;
      result.reason = FinishReason::context;
      if (static_cast<int64_t>(tokens.size()) > context) return result;
    }
  }

  std::unique_ptr<Backend> backend;
  Mixtral model;
};

std::vector<int32_t> draw_tokens(RandomStream& random, int64_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(kVocabulary));
  return tokens;
}

/// Requests of different lengths and settings, some of which begin alike.
std::vector<Request> requests() {
  RandomStream random(kSeed);
  const std::vector<int32_t> common = draw_tokens(random, 40);
  std::vector<Request> all;
  const auto add = [&](int64_t length, GenerationOptions options, bool begins_alike = false) {
    Request request{.prompt = draw_tokens(random, length), .options = std::move(options)};
    if (begins_alike) request.prompt.insert(request.prompt.begin(), common.begin(), common.end());
    all.push_back(std::move(request));
  };
  add(1, {.sampling = {.temperature = 0}, .max_tokens = 20});
  add(90, {.sampling = {.temperature = 0}, .max_tokens = 30});
  add(7, {.sampling = {.temperature = 1, .seed = 3}, .max_tokens = 40}, true);
  add(33, {.sampling = {.temperature = 0.8F, .top_k = 9, .repeat_penalty = 1.4F, .seed = 4},
           .repeat_last_n = 5,
           .max_tokens = 25});
  add(16, {.sampling = {.temperature = 0, .repeat_penalty = 2}, .max_tokens = 50}, true);
  add(24,
      {.sampling = {.temperature = 0, .repeat_penalty = 2}, .repeat_last_n = 0, .max_tokens = 9},
      true);
  add(2, {.sampling = {.temperature = 1.5F, .top_p = 0.9F, .min_p = 0.01F, .seed = 5},
          .max_tokens = 60,
          .stop_ids = {1, 2, 3}});
  add(140, {.sampling = {.temperature = 0}, .max_tokens = 100});  // the context ends it
  return all;
}

std::vector<Drawn> run(Engine& engine, const std::vector<Request>& all) {
  std::vector<Drawn> results(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    Request request = all[i];
    request.on_token = [&results, i](const GeneratedToken& token) {
      results[i].ids.push_back(token.id);
      results[i].log_probabilities.push_back(token.log_probability);
      return Next::go_on;
    };
    request.on_finish = [&results, i](FinishReason reason) { results[i].reason = reason; };
    engine.submit(std::move(request));
  }
  engine.run();
  return results;
}

struct Case {
  const char* device;
  int64_t window;
  const char* format = "off";
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.device << " " << c.window << " " << c.format;
  }
};
class EngineBits : public ::testing::TestWithParam<Case> {};

TEST_P(EngineBits, DrawsWhatAPlainLoopDraws) {
  Rig rig(GetParam().device, GetParam().window, GetParam().format);
  const std::vector<Request> all = requests();
  std::vector<Drawn> expected;
  expected.reserve(all.size());
  for (const Request& request : all)
    expected.push_back(rig.plain_loop(request, rig.model.context()));

  using Padding = Engine::Padding;
  const std::vector<std::pair<const char*, Engine::Options>> setups{
      {"one at a time", {}},
      {"one at a time, nothing shared", {.share_pages = false}},
      {"three at a time", {.sequences = 3}},
      {"all at once", {.sequences = 8}},
      {"more rows than requests, padded", {.sequences = 13, .padding = Padding::powers_of_two}},
      {"short slices of prompts", {.sequences = 5, .chunk = 11}},
      {"slices of one token", {.sequences = 8, .chunk = 1, .padding = Padding::powers_of_two}},
      {"hardly any room", {.sequences = 8, .cache_tokens = 176, .chunk = 48}},
      {"hardly any room, nothing shared",
       {.sequences = 8, .cache_tokens = 176, .share_pages = false}},
  };
  for (const auto& [setup, options] : setups) {
    Engine engine(*rig.backend, rig.model, options);
    const std::vector<Drawn> results = run(engine, all);
    for (size_t i = 0; i < all.size(); ++i)
      EXPECT_EQ(results[i], expected[i])
          << setup << ", request " << i << " of " << all[i].prompt.size() << " tokens";
    const Engine::Usage usage = engine.usage();
    EXPECT_EQ(usage.used_pages, 0) << setup;
    EXPECT_EQ(usage.running + usage.waiting, 0) << setup;
    // The same again: recordings and kept pages are there already.
    EXPECT_EQ(run(engine, all), expected) << setup << ", again";
    engine.forget_prefixes();
    EXPECT_EQ(engine.usage().kept_pages, 0) << setup;
  }
}

INSTANTIATE_TEST_SUITE_P(All, EngineBits,
                         ::testing::Values(Case{"ref", 0}, Case{"cpu", 0}, Case{"cpu", 7},
                                           Case{"cpu", 0, "q8_0"}, Case{"cpu", 0, "q4_0"}),
                         [](const auto& c) {
                           return fmt::format("{}_window_{}_{}", c.param.device, c.param.window,
                                              c.param.format);
                         });

TEST(EngineWithACacheOfFewerBits, DrawsTheSameHoweverRequestsAreServed) {
  for (const auto type : {ops::CacheType::int8, ops::CacheType::fp8, ops::CacheType::bf16}) {
    const std::vector<Request> all = requests();
    Rig exact("cpu", 0);
    std::vector<Drawn> in_f32;
    {
      Engine engine(*exact.backend, exact.model, {.share_pages = false});
      in_f32 = run(engine, all);
    }
    Rig rig("cpu", 0, "off", type);
    std::vector<Drawn> expected;
    for (const Engine::Options& options :
         std::vector<Engine::Options>{{.share_pages = false},
                                      {.sequences = 3},
                                      {.sequences = 5, .chunk = 11},
                                      {.sequences = 8, .cache_tokens = 176, .chunk = 48}}) {
      Engine engine(*rig.backend, rig.model, options);
      EXPECT_EQ(engine.cache().type(), type);
      const std::vector<Drawn> results = run(engine, all);
      if (expected.empty()) expected = results;
      EXPECT_EQ(results, expected) << to_string(type) << ", " << options.sequences;
    }
    // The first token of each sees the prompt through the cache.
    double largest = 0;
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i].options.sampling.temperature == 0)
        largest = std::max(
            largest, std::abs(expected[i].log_probabilities[0] - in_f32[i].log_probabilities[0]));
    EXPECT_GT(largest, 0) << to_string(type);
    EXPECT_LT(largest, type == ops::CacheType::fp8 ? 0.4 : 0.1) << to_string(type);
  }
}

class EngineTest : public ::testing::Test {
 protected:
  Request request(int64_t prompt, int64_t max_tokens) {
    return {.prompt = draw_tokens(random_, prompt),
            .options = {.sampling = {.temperature = 0}, .max_tokens = max_tokens}};
  }
  Rig rig_{"cpu", 0};
  RandomStream random_{kSeed};
};

TEST_F(EngineTest, SequencesLoseTheirPagesToOlderOnesAndGoOnLater) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 8, .cache_tokens = 160});
  const std::vector<Request> all = requests();
  std::vector<FinishReason> ended;
  for (Request request : all) {
    request.on_finish = [&](FinishReason reason) { ended.push_back(reason); };
    engine.submit(std::move(request));
  }
  engine.run();
  EXPECT_EQ(ended.size(), all.size());
  EXPECT_GT(engine.usage().preemptions, 0);
}

TEST_F(EngineTest, RequestsThatBeginAlikeShareTheirPages) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 4});
  const Request first = request(100, 3);
  Request second = request(10, 3);
  second.prompt.insert(second.prompt.begin(), first.prompt.begin(), first.prompt.begin() + 70);
  // At once: the second takes the pages that the first fills in the same step.
  const auto together = run(engine, {first, second});
  EXPECT_EQ(engine.usage().reused_tokens, 64);
  // Later: what was kept, but for the last token, which must go through the model.
  EXPECT_EQ(run(engine, {first, second}), together);
  EXPECT_EQ(engine.usage().reused_tokens, 64 + 96 + 64);
  engine.forget_prefixes();
  EXPECT_EQ(run(engine, {first}).front(), together.front());
  EXPECT_EQ(engine.usage().reused_tokens, 64 + 96 + 64);
}

TEST_F(EngineTest, CountsStepsAndWhatTheyComputed) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 2, .chunk = 32, .share_pages = false});
  run(engine, {request(40, 3), request(10, 3)});
  const Engine::Usage usage = engine.usage();
  EXPECT_EQ(usage.prompt_tokens, 50);
  EXPECT_EQ(usage.prompt_steps, 2);  // of 32 and 18 tokens, the end of both prompts
  EXPECT_EQ(usage.steps, 4);
  EXPECT_EQ(usage.drawn_rows, 6);
}

TEST_F(EngineTest, ReadsMoreOfAPromptWhereNoSequenceDecodes) {
  Engine engine(*rig_.backend, rig_.model,
                {.sequences = 2, .chunk = 16, .lone_chunk = 48, .share_pages = false});
  const Request first = request(50, 20), second = request(40, 3);
  const Drawn alone = run(engine, {second}).front();
  EXPECT_EQ(engine.usage().prompt_steps, 1);
  engine.submit(first);
  engine.step();
  engine.step();
  EXPECT_EQ(engine.usage().prompt_steps, 3);  // of 48 and 2 tokens: the first one decodes now
  EXPECT_EQ(run(engine, {second}).front(), alone);
  EXPECT_EQ(engine.usage().prompt_steps, 6);  // of 16, 16 and 8 tokens
}

TEST_F(EngineTest, CancellingFreesPagesAtOnce) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 3, .chunk = 32, .share_pages = false});
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    Request wanted = request(60, 50);
    wanted.on_finish = [](FinishReason) { FAIL() << "a cancelled request is not told anything"; };
    ids.push_back(engine.submit(std::move(wanted)));
  }
  engine.step();  // half of the first prompt
  EXPECT_EQ(engine.usage().used_pages, 2);
  for (int i = 0; i < 8; ++i) engine.step();
  EXPECT_EQ(engine.usage().running, 3);
  EXPECT_EQ(engine.usage().waiting, 1);
  const int64_t before = engine.usage().used_pages;
  engine.cancel(ids[1]);
  EXPECT_EQ(engine.usage().running, 2);
  EXPECT_LE(engine.usage().used_pages, before - 4);
  engine.cancel(ids[3]);
  EXPECT_EQ(engine.usage().waiting, 0);
  engine.cancel(ids[0]);
  engine.cancel(ids[2]);
  EXPECT_EQ(engine.usage().used_pages, 0);
  EXPECT_FALSE(engine.step());
  engine.cancel(ids[2]);  // has ended: nothing happens
}

TEST_F(EngineTest, ReceiversMaySubmitAndCancel) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 2});
  std::vector<std::string> told;
  Request other = request(5, 100);
  other.on_finish = [&](FinishReason) { told.emplace_back("other"); };
  const RequestId cancelled = engine.submit(std::move(other));
  Request third = request(4, 2);
  third.on_finish = [&](FinishReason reason) {
    told.push_back(fmt::format("third {}", name(reason)));
  };
  Request first = request(3, 100);
  int tokens = 0;
  first.on_token = [&](const GeneratedToken&) {
    if (++tokens < 3) return Next::go_on;
    engine.cancel(cancelled);
    engine.submit(third);
    return Next::stop;
  };
  first.on_finish = [&](FinishReason reason) {
    told.push_back(fmt::format("first {}", name(reason)));
  };
  engine.submit(std::move(first));
  Request itself = request(3, 100);
  RequestId id = 0;
  itself.on_token = [&](const GeneratedToken&) {
    engine.cancel(id);
    return Next::go_on;
  };
  id = engine.submit(std::move(itself));
  engine.run();
  EXPECT_EQ(told, (std::vector<std::string>{"first stop", "third length"}));
  EXPECT_EQ(engine.usage().used_pages, 0);
}

TEST_F(EngineTest, AFunctionThatThrowsEndsNoOtherRequest) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 2});
  const auto expected = run(engine, {request(9, 12)});
  random_ = RandomStream(kSeed);
  Request good = request(9, 12), bad = request(9, 12);
  Drawn result;
  good.on_token = [&](const GeneratedToken& token) {
    result.ids.push_back(token.id);
    result.log_probabilities.push_back(token.log_probability);
    return Next::go_on;
  };
  bad.on_token = [&](const GeneratedToken&) -> Next { throw Error("the receiver is gone"); };
  const RequestId id = engine.submit(std::move(bad));
  engine.submit(std::move(good));
  EXPECT_EQ(message_of([&] { engine.run(); }), "the receiver is gone");
  engine.cancel(id);
  engine.run();
  EXPECT_EQ(result, expected.front());
}

TEST_F(EngineTest, OnlyAllowedTokensAreDrawn) {
  Engine engine(*rig_.backend, rig_.model, {.sequences = 2});
  const Request free_request = request(9, 30);
  const auto expected = run(engine, {free_request});
  for (const float temperature : {0.F, 1.F}) {
    Request masked = free_request;
    masked.options.sampling.temperature = temperature;
    std::vector<int32_t> drawn;
    masked.allow = [&](TokenMask& mask) {
      // By turns an even and an odd token, as seen from what was drawn so far.
      for (int32_t v = 0; v < kVocabulary; ++v)
        if (v % 2 != static_cast<int32_t>(drawn.size()) % 2)
          mask[static_cast<size_t>(v / 32)] &= ~(uint32_t{1} << (v % 32));
    };
    masked.on_token = [&](const GeneratedToken& token) {
      drawn.push_back(token.id);
      return Next::go_on;
    };
    Drawn beside;
    Request other = free_request;
    other.on_token = [&](const GeneratedToken& token) {
      beside.ids.push_back(token.id);
      return Next::go_on;
    };
    engine.submit(std::move(masked));
    engine.submit(std::move(other));
    engine.run();
    ASSERT_EQ(drawn.size(), 30U);
    for (size_t i = 0; i < drawn.size(); ++i)
      EXPECT_EQ(drawn[i] % 2, static_cast<int32_t>(i) % 2) << i;
    EXPECT_EQ(beside.ids, expected.front().ids);  // the mask is the other request's alone
  }
}

TEST_F(EngineTest, TheBestTokensAreThoseOfTheLogits) {
  Engine engine(*rig_.backend, rig_.model);
  Request wanted = request(20, 1);
  wanted.best = 5;
  wanted.options.sampling = {.temperature = 5, .seed = 1};
  GeneratedToken got;
  wanted.on_token = [&](const GeneratedToken& token) {
    got = token;
    return Next::go_on;
  };
  const std::vector<float> all = rig_.logits(wanted.prompt);
  engine.submit(std::move(wanted));
  engine.run();
  std::vector<std::pair<double, int32_t>> order;
  double sum = 0;
  for (int32_t v = 0; v < kVocabulary; ++v) {
    const auto logit = static_cast<double>(all[all.size() - kVocabulary + static_cast<size_t>(v)]);
    order.emplace_back(-logit, v);
    sum += std::exp(logit);
  }
  std::ranges::sort(order);
  ASSERT_EQ(got.best.size(), 5U);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(got.best[i].id, order[i].second);
    EXPECT_NEAR(got.best[i].log_probability, -order[i].first - std::log(sum), 1e-6);
  }
}

TEST_F(EngineTest, PromptLogitsAreThoseOfOneForwardPass) {
  for (const int64_t chunk : {256, 17, 1}) {
    Engine engine(*rig_.backend, rig_.model, {.sequences = 2, .chunk = chunk});
    const Request wanted = request(75, 1);
    run(engine, {wanted});  // leaves pages that must not be used now
    engine.submit(request(9, 20));
    const std::vector<float> logits = generate_raw(engine, wanted.prompt, kVocabulary);
    const std::vector<float> expected = rig_.logits(wanted.prompt);
    ASSERT_EQ(logits.size(), expected.size());
    EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)), 0)
        << "slices of " << chunk;
  }
}

TEST_F(EngineTest, StepsOfOneShapeAreRecordedOnceForAllRequests) {
  Engine engine(*rig_.backend, rig_.model);
  run(engine, {request(8, 10)});
  EXPECT_EQ(engine.replayed(), 7);  // of nine steps after the prompt: one as it is, one recorded
  run(engine, {request(5, 10)});
  EXPECT_EQ(engine.replayed(), 7 + 9);
}

TEST_F(EngineTest, RefusesWhatTheModelCannotTake) {
  Engine engine(*rig_.backend, rig_.model, {.context = 32});
  const auto refusal = [&](Request request) {
    return message_of([&] { engine.submit(std::move(request)); });
  };
  EXPECT_NE(refusal({}).find("no tokens"), std::string::npos);
  EXPECT_NE(refusal({.prompt = {3, kVocabulary}}).find("61"), std::string::npos);
  EXPECT_NE(refusal({.prompt = {-1}}).find("-1"), std::string::npos);
  EXPECT_NE(refusal(request(32, 1)).find("context of 32"), std::string::npos);
  EXPECT_EQ(refusal(request(31, 1)), "no error");
  EXPECT_NE(message_of([&] { Engine(*rig_.backend, rig_.model, {.context = 161}); }).find("161"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              Engine(*rig_.backend, rig_.model, {.cache_tokens = 64});
            }).find("one sequence of 160"),
            std::string::npos);
}

TEST(EngineLeaks, NoRandomSequenceOfSubmitCancelAndStepLosesAPage) {
  ModelConfig config = testing::small_config(kVocabulary);
  config.num_layers = 1;
  config.hidden_size = 8;
  config.intermediate_size = 8;
  config.num_heads = 1;
  config.num_kv_heads = 1;
  config.num_experts = 2;
  config.experts_per_token = 1;
  const auto backend = make_backend("cpu", 1);
  Mixtral model(*backend, config, {});
  nn::initialise(*backend, model.parameters(), {.seed = kSeed, .deviation = 0.3});
  Engine engine(*backend, model, {.context = 64, .sequences = 4, .cache_tokens = 128, .chunk = 24});
  RandomStream random(kSeed);
  int64_t finished = 0;
  for (int round = 0; round < 10000; ++round) {
    std::vector<RequestId> ids;
    const uint64_t operations = 1 + random.below(8);
    for (uint64_t i = 0; i < operations; ++i) {
      const uint64_t choice = random.below(4);
      if (choice == 0 && !ids.empty()) {
        engine.cancel(ids[random.below(ids.size())]);
      } else if (choice <= 1) {
        Request request{.prompt = std::vector<int32_t>(1 + random.below(60), 1)};
        // Some begin alike, for a page or two.
        request.prompt.back() = static_cast<int32_t>(random.below(kVocabulary));
        request.prompt[request.prompt.size() / 2] = static_cast<int32_t>(random.below(3));
        request.options.max_tokens = 1 + static_cast<int64_t>(random.below(20));
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
    ASSERT_LE(usage.kept_pages, usage.pages) << "round " << round;
  }
  EXPECT_GT(finished, 1000);
  EXPECT_GT(engine.usage().preemptions, 0);
  engine.forget_prefixes();
  EXPECT_EQ(engine.usage().kept_pages, 0);
  EXPECT_EQ(engine.usage().used_pages, 0);  // so all pages are free
}

}  // namespace
}  // namespace mixtral
