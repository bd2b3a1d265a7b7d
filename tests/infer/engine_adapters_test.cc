// Several adapters over one base in one batch: each request gets the tokens that a model with its
// adapter alone gives, to the bit, and adapters come and go while an engine runs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/engine.h"
#include "model/adapter.h"
#include "model/adapter_set.h"
#include "tests/support/files.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

constexpr uint64_t kSeed = 20261129;
constexpr int32_t kVocabulary = 61;

ModelConfig small_config() {
  ModelConfig config = mixtral::testing::small_config(kVocabulary, 0, 3);
  config.intermediate_size = 24;
  config.max_positions = 128;
  return config;
}

/// An adapter whose updates are large enough to change what is drawn.
AdapterFile make_adapter(const AdapterSpec& spec, uint64_t seed) {
  AdapterFile file = new_adapter(spec, small_config());
  RandomStream random(seed);
  const auto draw = [&](int64_t count) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(static_cast<float>(random.uniform() - 0.5));
    return values;
  };
  for (AdapterModule& module : file.modules) {
    const TargetShape shape = target_shape(small_config(), module.target);
    module.a = draw(shape.groups * module.rank * shape.inputs);
    module.b = draw(shape.groups * shape.rows * module.rank);
  }
  return file;
}

/// Adapters that differ in targets, rank and scale; the first and the fourth in values alone.
std::vector<AdapterFile> adapters() {
  const AdapterSpec attention{.targets = {"q_proj", "v_proj", "o_proj"}, .rank = 4, .alpha = 8};
  return {make_adapter(attention, 1),
          make_adapter({.targets = {"w1", "w2", "w3", "gate"}, .rank = 3, .alpha = 5}, 2),
          make_adapter({.targets = {"q_proj", "k_proj", "gate_up_proj", "down_proj", "lm_head"},
                        .rank = 5,
                        .alpha = 7,
                        .rslora = true},
                       3),
          make_adapter(attention, 4),
          make_adapter({.targets = {"v_proj"}, .rank = 4, .alpha = 8, .last_layers = 1}, 5)};
}

struct Model {
  explicit Model(const std::string& device, Dtype compute = Dtype::f32)
      : backend(make_backend(device, 2)),
        model(*backend, small_config(), {.weights = compute, .compute = compute}) {
    nn::initialise(
        *backend, model.parameters(),
        {.seed = kSeed, .deviation = 0.3, .residual_deviation = 0.3, .embedding_deviation = 1});
  }

  /// The most probable tokens, each by one forward pass over all before it without a cache.
  std::vector<int32_t> greedy(std::vector<int32_t> tokens, int64_t count) {
    std::vector<int32_t> result;
    for (int64_t i = 0; i < count; ++i) {
      Arena arena(*backend);
      Context ctx(*backend, arena, Dtype::f32);
      HostBatch host;
      host.append(tokens);
      const Tensor hidden = model.forward(ctx, upload(ctx, host, kVocabulary, model.context()),
                                          nullptr, nullptr, nullptr);
      const Tensor last = ctx.allocate({1, kVocabulary}, Dtype::f32);
      model.logits(ctx, hidden.slice(hidden.dim(0) - 1, hidden.dim(0)), last);
      std::vector<float> logits(kVocabulary);
      backend->download(last, Tensor(logits.data(), last.shape(), Dtype::f32));
      result.push_back(static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin()));
      tokens.push_back(result.back());
    }
    return result;
  }

  std::unique_ptr<Backend> backend;
  Mixtral model;
};

Request make_request(std::vector<int32_t> prompt, int64_t max_tokens, int32_t adapter) {
  return {.prompt = std::move(prompt),
          .options = {.sampling = {.temperature = 0}, .max_tokens = max_tokens},
          .adapter = adapter};
}

std::vector<int32_t> draw_prompt(RandomStream& random, int64_t length) {
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < length; ++i)
    prompt.push_back(static_cast<int32_t>(random.below(kVocabulary)));
  return prompt;
}

/// Adds a request whose tokens are appended to `ids`.
RequestId submit(Engine& engine, Request request, std::vector<int32_t>& ids) {
  request.on_token = [&ids](const GeneratedToken& token) {
    ids.push_back(token.id);
    return Next::go_on;
  };
  return engine.submit(std::move(request));
}

std::vector<std::vector<int32_t>> run(Engine& engine, const std::vector<Request>& requests) {
  std::vector<std::vector<int32_t>> ids(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) submit(engine, requests[i], ids[i]);
  engine.run();
  return ids;
}

class EngineAdapters : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineAdapters, EachRequestGetsTheTokensOfItsAdapterAlone) {
  const std::vector<AdapterFile> files = adapters();
  RandomStream random(kSeed);
  const std::vector<int32_t> common = draw_prompt(random, 33);
  // The same prompt with each adapter, whose pages must not be mixed, and others.
  std::vector<Request> requests;
  for (int32_t adapter = kNoAdapter; adapter < static_cast<int32_t>(files.size()); ++adapter) {
    requests.push_back(make_request(common, 12, adapter));
    std::vector<int32_t> longer = common;
    for (const int32_t token : draw_prompt(random, 3 * (adapter + 2))) longer.push_back(token);
    requests.push_back(make_request(longer, 7, adapter));
    requests.push_back(make_request(draw_prompt(random, 2 + adapter * 5 + 5), 20, adapter));
  }
  std::vector<std::vector<int32_t>> expected;
  for (const Request& request : requests) {
    Model alone(GetParam());
    std::optional<Adapter> adapter;
    if (request.adapter != kNoAdapter)
      adapter.emplace(*alone.backend, alone.model, files[static_cast<size_t>(request.adapter)],
                      Adapter::Options());
    expected.push_back(alone.greedy(request.prompt, request.options.max_tokens));
  }
  for (size_t i = 3; i < requests.size(); i += 3)
    EXPECT_NE(expected[i], expected[0]) << "adapter " << i / 3 - 1 << " changes nothing";

  Model all(GetParam());
  AdapterSet set(*all.backend, all.model, files.front());
  for (size_t i = 1; i < files.size(); ++i) EXPECT_EQ(set.add(files[i]), static_cast<int32_t>(i));
  using Padding = Engine::Padding;
  const std::vector<std::pair<const char*, Engine::Options>> setups{
      {"one at a time", {}},
      {"all at once", {.sequences = 18}},
      {"padded", {.sequences = 11, .padding = Padding::powers_of_two}},
      {"short slices", {.sequences = 7, .chunk = 9}},
      {"hardly any room", {.sequences = 18, .cache_tokens = 176, .chunk = 40}},
      {"experts counted", {.sequences = 18, .count_experts = true}},
      {"speculating", {.sequences = 11, .chunk = 30, .speculation = {.tokens = 3, .adapt = false}}},
      {"speculating, one at a time", {.speculation = {.tokens = 3, .adapt = false}}},
  };
  for (auto [setup, options] : setups) {
    options.adapters = &set;
    Engine engine(*all.backend, all.model, options);
    EXPECT_EQ(run(engine, requests), expected) << setup;
    EXPECT_EQ(run(engine, requests), expected) << setup << ", again";
    if (engine.speculates()) {
      EXPECT_GT(engine.usage().speculation.accepted, 0) << setup;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EngineAdapters, ::testing::Values("ref", "cpu"),
                         [](const auto& device) { return std::string(device.param); });

TEST(AdapterSet, AnIndexThatComesAgainHasNothingOfTheAdapterBefore) {
  Model all("cpu");
  AdapterSet set(*all.backend, all.model);
  Engine engine(*all.backend, all.model, {.sequences = 4, .adapters = &set});
  const std::vector<AdapterFile> files = adapters();
  RandomStream random(kSeed);
  const std::vector<int32_t> prompt = draw_prompt(random, 50);
  for (const AdapterFile& file : files) {
    std::vector<int32_t> expected;
    {
      Model alone("cpu");
      const Adapter adapter(*alone.backend, alone.model, file, Adapter::Options());
      expected = alone.greedy(prompt, 9);
    }
    const int32_t index = set.add(file);
    EXPECT_EQ(index, 1);
    EXPECT_GT(set.bytes(), 0);
    // The second takes the first one's pages, and none of an earlier adapter's.
    const int64_t before = engine.usage().reused_tokens;
    const auto got = run(engine, {make_request(prompt, 9, index), make_request(prompt, 9, index)});
    EXPECT_EQ(got.front(), expected);
    EXPECT_EQ(got.back(), expected);
    EXPECT_EQ(engine.usage().reused_tokens - before, 48);
    set.remove(index);
    EXPECT_EQ(set.bytes(), 0);
  }
}

TEST(AdapterSet, WhatUsesAnAdapterEndsWithItThoughItIsRemoved) {
  Model all("cpu");
  AdapterSet set(*all.backend, all.model);
  Engine engine(*all.backend, all.model, {.sequences = 4, .adapters = &set});
  const std::vector<AdapterFile> files = adapters();
  RandomStream random(kSeed);
  const std::vector<int32_t> prompt = draw_prompt(random, 20);
  const int32_t first = set.add(files[1]);
  const auto expected = run(engine, {make_request(prompt, 15, first)}).front();
  std::vector<int32_t> ids, others;
  submit(engine, make_request(prompt, 15, first), ids);
  const RequestId cancelled = submit(engine, make_request(prompt, 100, first), others);
  for (int i = 0; i < 4; ++i) engine.step();
  set.remove(first);
  EXPECT_FALSE(set.has(first));
  EXPECT_EQ(message_of([&] { engine.submit(make_request(prompt, 1, first)); }),
            fmt::format("there is no adapter {}", first));
  // Another one comes meanwhile, at an index of its own, and memory moves.
  EXPECT_NE(set.add(files[2]), first);
  engine.cancel(cancelled);
  EXPECT_GT(set.bytes(), 0);
  engine.run();
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(set.add(files[3]), first);
}

TEST(AdapterSet, TheBaseIsAsItWasWhenTheSetIsGone) {
  Model model("cpu");
  RandomStream random(kSeed);
  const std::vector<int32_t> prompt = draw_prompt(random, 10);
  const auto expected = model.greedy(prompt, 8);
  {
    AdapterSet set(*model.backend, model.model, adapters()[2]);
    EXPECT_NE(model.greedy(prompt, 8), expected);
    set.add(adapters()[1]);
  }
  EXPECT_EQ(model.greedy(prompt, 8), expected);
  EXPECT_TRUE(model.model.blocks()[0].attention.qkv->plain_weight());
}

TEST(AdapterSet, RequestsWithoutASetUseTheOwnAdapterOrNone) {
  Model model("cpu");
  RandomStream random(kSeed);
  const std::vector<int32_t> prompt = draw_prompt(random, 10);
  const auto base = model.greedy(prompt, 8);
  const Adapter adapter(*model.backend, model.model, adapters()[1], Adapter::Options());
  const auto tuned = model.greedy(prompt, 8);
  EXPECT_NE(tuned, base);
  Engine engine(*model.backend, model.model, {.sequences = 2});
  EXPECT_EQ(
      run(engine, {make_request(prompt, 8, kOwnAdapter), make_request(prompt, 8, kNoAdapter)}),
      (std::vector{tuned, base}));
  EXPECT_EQ(message_of([&] { engine.submit(make_request(prompt, 8, 1)); }),
            "there is no adapter 1");
}

}  // namespace
}  // namespace mixtral
