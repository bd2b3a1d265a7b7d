// Generation with keys and values in each type of cache, on each device: in f32 the tokens are
// those of the reference, in bf16 their probabilities are near. All experts take part, since
// another choice of experts would hide how near.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/engine.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

constexpr int32_t kVocabulary = 203;
constexpr int64_t kDrawn = 16;

ModelConfig config_of(int64_t window) {
  ModelConfig config = testing::small_config(kVocabulary, window);
  config.hidden_size = 128;
  config.intermediate_size = 96;
  config.num_heads = 8;
  config.head_dim = 64;
  config.num_experts = 2;
  config.max_positions = 400;
  return config;
}

struct Drawn {
  std::vector<int32_t> ids;
  std::vector<double> log_probabilities;
};

/// What is drawn greedily behind prompts of several lengths, first one by one, then together.
std::vector<Drawn> generate(const std::string& device, Dtype compute, ops::CacheType cache,
                            int64_t window) {
  const auto backend = make_backend(device, 2);
  Mixtral model(*backend, config_of(window),
                {.weights = compute, .compute = compute, .cache = cache});
  nn::initialise(
      *backend, model.parameters(),
      {.seed = 11, .deviation = 0.2, .residual_deviation = 0.2, .embedding_deviation = 1});
  std::vector<Drawn> drawn;
  for (const int64_t together : {1, 5}) {
    Engine engine(*backend, model, {.sequences = together, .chunk = 100, .share_pages = false});
    const size_t begin = drawn.size();
    const std::vector<int64_t> lengths{1, 17, 64, 130, 333};
    drawn.resize(begin + lengths.size());
    RandomStream random(5);
    for (size_t i = 0; i < lengths.size(); ++i) {
      Request request;
      for (int64_t t = 0; t < lengths[i]; ++t)
        request.prompt.push_back(static_cast<int32_t>(random.below(kVocabulary)));
      request.options = {.sampling = {.temperature = 0}, .max_tokens = kDrawn};
      request.on_token = [&to = drawn[begin + i]](const GeneratedToken& token) {
        to.ids.push_back(token.id);
        to.log_probabilities.push_back(token.log_probability);
        return Next::go_on;
      };
      engine.submit(std::move(request));
    }
    engine.run();
  }
  return drawn;
}

struct Case {
  const char* device;
  Dtype compute;
  ops::CacheType cache;
  int64_t window;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << fmt::format("{} {} {} {}", c.device, to_string(c.compute), to_string(c.cache),
                        c.window);
  }
};

class CacheTypes : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (std::string_view(GetParam().device) == "cuda" &&
        make_backend("auto")->kind() != DeviceKind::gpu)
      GTEST_SKIP() << "no GPU that the CUDA backend can use";
  }
};

TEST_P(CacheTypes, DrawWhatTheReferenceDraws) {
  const Case& c = GetParam();
  const auto expected = generate("ref", c.compute, c.cache, c.window);
  const auto drawn = generate(c.device, c.compute, c.cache, c.window);
  ASSERT_EQ(drawn.size(), expected.size());
  size_t compared = 0;
  double largest = 0;
  for (size_t i = 0; i < drawn.size(); ++i) {
    ASSERT_EQ(drawn[i].ids.size(), static_cast<size_t>(kDrawn));
    if (c.compute == Dtype::f32) {
      EXPECT_EQ(drawn[i].ids, expected[i].ids) << i;
    }
    // In bf16, up to where another token is drawn.
    for (size_t t = 0; t < drawn[i].ids.size(); ++t) {
      if (drawn[i].ids[t] != expected[i].ids[t]) break;
      ++compared;
      largest = std::max(
          largest, std::abs(drawn[i].log_probabilities[t] - expected[i].log_probabilities[t]));
    }
  }
  EXPECT_GE(compared, drawn.size() * kDrawn / 2);
  // Where sums differ in their last place, a code may be a neighbour of the reference's.
  EXPECT_LT(largest, c.compute == Dtype::f32 ? 0.05 : 0.25);
}

std::vector<Case> cases() {
  using ops::CacheType;
  std::vector<Case> all;
  for (const int64_t window : {0, 40}) {
    for (const auto cache : {CacheType::bf16, CacheType::f16, CacheType::int8, CacheType::fp8}) {
      all.push_back({"cpu", Dtype::f32, cache, window});
      all.push_back({"cuda", Dtype::f32, cache, window});
      all.push_back({"cuda", Dtype::bf16, cache, window});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, CacheTypes, ::testing::ValuesIn(cases()), [](const auto& i) {
  const Case& c = i.param;
  return fmt::format("{}_{}_cache_{}_window_{}", c.device, to_string(c.compute), to_string(c.cache),
                     c.window);
});

}  // namespace
}  // namespace mixtral
