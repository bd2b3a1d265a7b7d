// What an engine says of tokens' experts is what one forward pass over the whole sequence says,
// whatever slices, pages and other requests there are.
#include "infer/step_routes.h"

#include <gtest/gtest.h>

#include <map>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/engine.h"

namespace mixtral {
namespace {

constexpr int64_t kLayers = 3, kExperts = 5, kPerToken = 2;
constexpr int32_t kVocabulary = 61;

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 32;
  config.intermediate_size = 24;
  config.num_layers = kLayers;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.num_experts = kExperts;
  config.experts_per_token = kPerToken;
  config.max_positions = 160;
  return config;
}

class StepRoutesTest : public ::testing::Test {
 protected:
  StepRoutesTest() : backend_(make_backend("cpu", 2)), model_(*backend_, small_config(), {}) {
    nn::initialise(
        *backend_, model_.parameters(),
        {.seed = 7, .deviation = 0.3, .residual_deviation = 0.3, .embedding_deviation = 1});
  }

  std::vector<int32_t> tokens(int64_t count) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i)
      ids.push_back(static_cast<int32_t>(random_.below(kVocabulary)));
    return ids;
  }

  /// Each token's routes by one forward pass without a cache.
  std::vector<TokenRoutes> expected(const std::vector<int32_t>& ids) {
    Arena arena(*backend_);
    Context ctx(*backend_, arena, Dtype::f32);
    HostBatch host;
    host.append(ids);
    auto reports = model_.allocate_reports(ctx);
    model_.allocate_token_routes(ctx, host.size(), reports);
    model_.forward(ctx, upload(ctx, host, kVocabulary, model_.context()), nullptr, nullptr,
                   &reports);
    std::vector<TokenRoutes> all(ids.size());
    for (size_t n = 0; n < ids.size(); ++n)
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        const auto row = layer * host.size() + static_cast<int64_t>(n);
        const int32_t* expert = reports.expert.as<int32_t>() + row * kPerToken;
        const float* logit = reports.logits.as<float>() + row * kExperts;
        const double a = std::exp(static_cast<double>(logit[expert[0]]));
        const double b = std::exp(static_cast<double>(logit[expert[1]]));
        for (const int64_t j : {0, 1}) {
          all[n].expert.push_back(expert[j]);
          all[n].weight.push_back(static_cast<float>((j == 0 ? a : b) / (a + b)));
        }
      }
    return all;
  }

  static void expect_same(const TokenRoutes& got, const TokenRoutes& wanted) {
    EXPECT_EQ(got.expert, wanted.expert);
    ASSERT_EQ(got.weight.size(), wanted.weight.size());
    for (size_t i = 0; i < got.weight.size(); ++i)
      EXPECT_NEAR(got.weight[i], wanted.weight[i], 1e-5);
  }

  std::unique_ptr<Backend> backend_;
  Mixtral model_;
  RandomStream random_{20261128};
};

TEST_F(StepRoutesTest, TokensRoutesAreThoseOfOneForwardPass) {
  struct Setup {
    int64_t sequences, cache_tokens, chunk;
    Engine::Padding padding;
  };
  for (const Setup& setup :
       {Setup{1, 0, 256, Engine::Padding::none}, Setup{4, 0, 7, Engine::Padding::powers_of_two},
        Setup{4, 160, 16, Engine::Padding::powers_of_two}}) {
    Engine engine(*backend_, model_,
                  {.sequences = setup.sequences,
                   .cache_tokens = setup.cache_tokens,
                   .chunk = setup.chunk,
                   .padding = setup.padding});
    struct Got {
      std::vector<int32_t> ids;  // the prompt, then what was drawn
      std::vector<TokenRoutes> prompt, drawn;
    };
    std::vector<Got> results(5);
    const std::vector<int32_t> common = tokens(40);
    for (size_t i = 0; i < results.size(); ++i) {
      Got& got = results[i];
      got.ids = i == 3 ? tokens(1) : common;  // one of a single token, the others begin alike
      const std::vector<int32_t> own = tokens(static_cast<int64_t>(5 * i));
      if (i != 3) got.ids.insert(got.ids.end(), own.begin(), own.end());
      Request request{.prompt = got.ids,
                      .options = {.sampling = {.temperature = 1, .seed = i}, .max_tokens = 30}};
      request.routes = i != 4;  // and one that does not ask
      if (i != 4)
        request.on_prompt_routes = [&got](int64_t first, const std::vector<TokenRoutes>& routes) {
          EXPECT_EQ(first, static_cast<int64_t>(got.prompt.size()));
          got.prompt.insert(got.prompt.end(), routes.begin(), routes.end());
        };
      request.on_token = [&got](const GeneratedToken& token) {
        got.ids.push_back(token.id);
        got.drawn.push_back(token.routes);
        return Next::go_on;
      };
      engine.submit(std::move(request));
    }
    engine.run();
    for (size_t i = 0; i < 4; ++i) {
      SCOPED_TRACE(testing::Message() << "request " << i << ", slices of " << setup.chunk);
      const Got& got = results[i];
      const size_t length = got.ids.size() - 30;
      const std::vector<TokenRoutes> wanted = expected(got.ids);
      ASSERT_EQ(got.prompt.size(), length);
      ASSERT_EQ(got.drawn.size(), 30U);
      for (size_t n = 0; n < length; ++n) expect_same(got.prompt[n], wanted[n]);
      for (size_t n = 0; n < 30; ++n) expect_same(got.drawn[n], wanted[length - 1 + n]);
    }
    for (const TokenRoutes& routes : results[4].drawn) EXPECT_TRUE(routes.expert.empty());
  }
}

TEST_F(StepRoutesTest, TheLoadCountsEachTokenThatWasComputedOnce) {
  Engine engine(*backend_, model_,
                {.sequences = 4,
                 .share_pages = false,
                 .padding = Engine::Padding::powers_of_two,
                 .count_experts = true});
  std::vector<std::vector<int32_t>> all(3);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = tokens(static_cast<int64_t>(9 + 20 * i));
    Request request{.prompt = all[i],
                    .options = {.sampling = {.temperature = 0}, .max_tokens = 12}};
    request.on_token = [&ids = all[i]](const GeneratedToken& token) {
      ids.push_back(token.id);
      return Next::go_on;
    };
    engine.submit(std::move(request));
  }
  engine.run();
  std::vector<int64_t> taken(static_cast<size_t>(kLayers * kExperts));
  int64_t tokens = 0;
  for (std::vector<int32_t>& ids : all) {
    ids.pop_back();  // the last token is drawn, but does not go through the model
    tokens += static_cast<int64_t>(ids.size());
    for (const TokenRoutes& routes : expected(ids))
      for (size_t i = 0; i < routes.expert.size(); ++i)
        ++taken[i / kPerToken * kExperts + static_cast<size_t>(routes.expert[i])];
  }
  ASSERT_NE(engine.expert_load(), nullptr);
  EXPECT_EQ(engine.expert_load()->tokens, tokens);
  EXPECT_EQ(engine.expert_load()->taken, taken);
  EXPECT_EQ(Engine(*backend_, model_).expert_load(), nullptr);
}

}  // namespace
}  // namespace mixtral
