// The CPU's partial ordering in sampling against the reference's full sort, at vocabulary sizes and
// shapes of distributions where they take different paths.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "ops/backend.h"

namespace mixtral {
namespace {

constexpr int32_t kVocabulary = 32000;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Draw {
  int32_t token;
  float log_probability;
};

Draw draw(Backend& backend, std::vector<float>& logits, ops::SamplingSettings settings,
          std::vector<int32_t>& history, int32_t position) {
  Draw result{-1, 0};
  const auto size = static_cast<int64_t>(logits.size());
  backend.run(ops::Sample{
      .logits = Tensor(logits.data(), {1, size}, Dtype::f32),
      .settings = Tensor(&settings, {1, static_cast<int64_t>(sizeof settings)}, Dtype::u8),
      .history = history.empty() ? Tensor()
                                 : Tensor(history.data(), {1, static_cast<int64_t>(history.size())},
                                          Dtype::i32),
      .positions = Tensor(&position, {1}, Dtype::i32),
      .tokens = Tensor(&result.token, {1}, Dtype::i32),
      .log_probability = Tensor(&result.log_probability, {1}, Dtype::f32)});
  return result;
}

std::vector<float> logits_of(RandomStream& random, double spread, bool coarse) {
  std::vector<float> logits(kVocabulary);
  for (float& logit : logits) {
    const double value = spread * random.normal();
    logit = static_cast<float>(coarse ? std::round(value * 4) / 4 : value);  // coarse: many ties
  }
  return logits;
}

TEST(CpuSample, DrawsWhatAFullSortDraws) {
  const uint64_t seed = 20261124;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  RandomStream random(seed);
  const auto reference = make_backend("ref"), cpu = make_backend("cpu", 1);
  std::vector<ops::SamplingSettings> settings;
  for (float temperature : {0.f, 0.7f, 1.f, 30.f})
    for (int32_t top_k : {0, 1, 40, 1000, 40000})
      for (float top_p : {1.f, 0.9f})
        for (float min_p : {0.f, 0.05f})
          settings.push_back({.temperature = temperature,
                              .top_k = top_k,
                              .top_p = top_p,
                              .min_p = min_p,
                              .repeat_penalty = random.uniform() < 0.5 ? 1.f : 1.3f});
  for (double spread : {0.01, 2.0, 12.0}) {
    for (bool coarse : {false, true}) {
      std::vector<float> logits = logits_of(random, spread, coarse);
      std::vector<int32_t> history;
      for (int i = 0; i < 32; ++i)
        history.push_back(static_cast<int32_t>(random.below(kVocabulary + 1)) - 1);
      for (ops::SamplingSettings each : settings) {
        each.seed = random.next();
        const auto position = static_cast<int32_t>(random.below(1000));
        const Draw want = draw(*reference, logits, each, history, position);
        const Draw got = draw(*cpu, logits, each, history, position);
        ASSERT_EQ(got.token, want.token)
            << fmt::format("temperature {}, top-k {}, top-p {}, min-p {}, penalty {}, spread {}{}",
                           each.temperature, each.top_k, each.top_p, each.min_p,
                           each.repeat_penalty, spread, coarse ? ", coarse" : "");
        ASSERT_NEAR(got.log_probability, want.log_probability, 1e-5);
      }
    }
  }
}

TEST(CpuSample, SurvivesLogitsThatAreNotFinite) {
  const auto reference = make_backend("ref"), cpu = make_backend("cpu", 1);
  std::vector<int32_t> history{0, 3, 3};
  const std::vector<std::vector<float>> rows{
      {NAN, NAN, NAN, NAN, NAN},
      {-kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity},
      {1, kInfinity, 2, kInfinity, NAN},
      {NAN, 1, -kInfinity, 1, 0.5f},
      {-kInfinity, -3e38f, 3e38f, -kInfinity, 3e38f}};
  for (std::vector<float> logits : rows) {
    for (float penalty : {1.f, 1.5f}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const ops::SamplingSettings settings{.temperature = seed % 5 == 0 ? 0.f : 1.f,
                                             .top_p = seed % 2 == 0 ? 1.f : 0.8f,
                                             .repeat_penalty = penalty,
                                             .seed = seed};
        const Draw want = draw(*reference, logits, settings, history, 5);
        const Draw got = draw(*cpu, logits, settings, history, 5);
        ASSERT_EQ(got.token, want.token) << logits[0] << ", " << logits[1] << ", seed " << seed;
      }
    }
  }
}

TEST(CpuSample, TakesTheFirstOfTheLargest) {
  RandomStream random(20261130);
  const auto reference = make_backend("ref"), cpu = make_backend("cpu", 1);
  const ops::SamplingSettings settings{.temperature = 0};
  std::vector<int32_t> history;
  for (const size_t size : {1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 300}) {
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<float> logits(size);
      for (float& logit : logits) {
        logit = static_cast<float>(random.below(9)) - 4;
        if (random.below(size + 8) == 0) logit = NAN;
        if (random.below(4) == 0) logit = -kInfinity;
      }
      const Draw want = draw(*reference, logits, settings, history, 0);
      const Draw got = draw(*cpu, logits, settings, history, 0);
      ASSERT_EQ(got.token, want.token) << size << " tokens, trial " << trial;
    }
  }
}

}  // namespace
}  // namespace mixtral
