// The reference backend against answers that are known otherwise. (Its gradients: gradient_test.)
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"
#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

using Values = std::vector<double>;

Tensor tensor(Values& values, Shape shape) { return {values.data(), shape, Dtype::f64}; }
Tensor tensor(std::vector<int32_t>& values, Shape shape) {
  return {values.data(), shape, Dtype::i32};
}

template <class Half>
float rounded(double value) {
  return static_cast<float>(round_to<Half>(value));
}

TEST(Rounding, To16BitsHappensOnce) {
  // Just above a tie of bf16, by less than a float can tell: rounding twice would go down to even.
  const double above = 1 + 0x1p-8 + 0x1p-40, below = 1 + 0x1p-7 + 0x1p-8 - 0x1p-40;
  EXPECT_EQ(rounded<bf16>(above), 1 + 0x1p-7F);
  EXPECT_EQ(rounded<bf16>(-above), -1 - 0x1p-7F);
  EXPECT_EQ(rounded<bf16>(below), 1 + 0x1p-7F);
  EXPECT_EQ(rounded<bf16>(1 + 0x1p-8), 1.0F);
  EXPECT_EQ(rounded<f16>(1 + 0x1p-11 + 0x1p-40), 1 + 0x1p-10F);
  EXPECT_EQ(rounded<f16>(0x1p-25 + 0x1p-60), 0x1p-24F);
  EXPECT_EQ(rounded<f16>(0x1p-25), 0.0F);
}

TEST(Rounding, ExtremesStayWhatTheyAre) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(rounded<bf16>(1e300), std::numeric_limits<float>::infinity());
  EXPECT_EQ(rounded<bf16>(-kInfinity), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(rounded<bf16>(std::numeric_limits<double>::quiet_NaN())));
  EXPECT_EQ(rounded<bf16>(1e-300), 0.0F);
  EXPECT_EQ(rounded<bf16>(0x1.FEp127), 0x1.FEp127F);
  EXPECT_EQ(rounded<f16>(65519.9), 65504.0F);
  EXPECT_EQ(rounded<f16>(65520.0), std::numeric_limits<float>::infinity());
}

TEST(Rounding, AgreesWithFloatWhereFloatIsExact) {
  RandomStream random(3);
  for (int i = 0; i < 20000; ++i) {
    const auto value =
        static_cast<float>(std::ldexp(random.normal(), static_cast<int>(random.below(60)) - 30));
    ASSERT_EQ(rounded<bf16>(static_cast<double>(value)), static_cast<float>(bf16(value)));
    ASSERT_EQ(rounded<f16>(static_cast<double>(value)), static_cast<float>(f16(value)));
  }
}

TEST(StochasticRounding, IsUnbiasedAndKeepsWhatIsExact) {
  const float value = 1 + 0x1p-7F * 0.3F;
  double sum = 0;
  for (uint32_t word = 0; word < 65536; ++word)
    sum += static_cast<double>(static_cast<float>(ops::round_stochastically(value, word)));
  EXPECT_NEAR(sum / 65536, static_cast<double>(value), 1e-7);
  for (float exact : {0.0F, -1.5F, 0x1p-130F, std::numeric_limits<float>::infinity()})
    EXPECT_EQ(static_cast<float>(ops::round_stochastically(exact, 0xffffffffu)), exact);
  EXPECT_TRUE(std::isnan(static_cast<float>(
      ops::round_stochastically(std::numeric_limits<float>::quiet_NaN(), 0xffffu))));
}

class Ref : public testing::Test {
 protected:
  RefBackend backend_;
};

TEST_F(Ref, RopeIsAComplexRotation) {
  const ops::Heads heads{2, 1, 4};
  const int64_t positions = 9;
  Values table(positions * 2 * 2), qkv(16), before;
  for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = std::sin(static_cast<double>(i) + 1);
  before = qkv;
  ops::fill_rope_table(tensor(table, {positions, 2, 2}), 100);
  std::vector<int32_t> at{7};
  backend_.run(ops::Rope{.qkv = tensor(qkv, {1, 16}),
                         .positions = tensor(at, {1}),
                         .table = tensor(table, {positions, 2, 2}),
                         .heads = heads});
  for (size_t head = 0; head < 3; ++head) {
    for (size_t i = 0; i < 2; ++i) {
      const std::complex<double> x(before[4 * head + i], before[4 * head + i + 2]);
      const double angle = 7 * std::pow(100, -static_cast<double>(i) / 2);
      const auto y = x * std::polar(1.0, angle);
      EXPECT_NEAR(qkv[4 * head + i], y.real(), 1e-6);  // angles are rounded to float
      EXPECT_NEAR(qkv[4 * head + i + 2], y.imag(), 1e-6);
    }
  }
  for (size_t i = 12; i < 16; ++i) EXPECT_EQ(qkv[i], before[i]);  // values are left alone
}

TEST_F(Ref, AttentionOfEqualKeysAveragesWhatIsVisible) {
  const ops::Heads heads{1, 1, 2};
  const int64_t tokens = 6;
  Values qkv, out(2 * tokens), log_sum(tokens);
  for (int64_t n = 0; n < tokens; ++n) {
    const auto value = static_cast<double>(n);
    qkv.insert(qkv.end(), {1, 2, 3, 4, value, -value});
  }
  std::vector<int32_t> starts{0, 4, 6};
  backend_.run(ops::Attention{.qkv = tensor(qkv, {tokens, 6}),
                              .sequence_starts = tensor(starts, {3}),
                              .out = tensor(out, {tokens, 2}),
                              .log_sum = tensor(log_sum, {tokens, 1}),
                              .heads = heads,
                              .window = 3,
                              .scale = 0.1,
                              .longest = 4});
  const std::array<double, 6> mean{0, 0.5, 1, 2, 4, 4.5}, seen{1, 2, 3, 3, 1, 2};
  for (size_t n = 0; n < 6; ++n) {
    EXPECT_NEAR(out[2 * n], mean[n], 1e-14);
    EXPECT_NEAR(out[2 * n + 1], -mean[n], 1e-14);
    EXPECT_NEAR(log_sum[n], 1.1 + std::log(seen[n]), 1e-14);
  }
}

TEST_F(Ref, RouteTakesTheLowerIndexOfATieAndSortsRowsByExpert) {
  Values logits{1, 3, 3, 0, /**/ 2, 2, 2, 2, /**/ -1, -5, 4, 4}, weights(6);
  std::vector<int32_t> expert(6), slot(6), source(6), offsets(5);
  backend_.run(ops::Route{.logits = tensor(logits, {3, 4}),
                          .positions = {},
                          .weights = tensor(weights, {3, 2}),
                          .expert = tensor(expert, {3, 2}),
                          .slot = tensor(slot, {3, 2}),
                          .source = tensor(source, {6}),
                          .offsets = tensor(offsets, {5})});
  EXPECT_EQ(expert, (std::vector<int32_t>{1, 2, 0, 1, 2, 3}));
  EXPECT_EQ(offsets, (std::vector<int32_t>{0, 1, 3, 5, 6}));
  EXPECT_EQ(source, (std::vector<int32_t>{2, 0, 3, 1, 4, 5}));
  EXPECT_EQ(slot, (std::vector<int32_t>{1, 3, 0, 2, 4, 5}));
  for (double weight : weights) EXPECT_DOUBLE_EQ(weight, 0.5);
}

TEST_F(Ref, EvenRoutingHasBalanceLossK) {
  // With equal loads k/E and equal probabilities 1/E the loss is k, per layer and pooled.
  for (const bool pooled : {false, true}) {
    Values load(8, 0.5), importance(8, 0.25), z{1, 3}, losses(2), dprobability(8);
    backend_.run(ops::BalanceLoss{.load = tensor(load, {2, 4}),
                                  .importance = tensor(importance, {2, 4}),
                                  .z = tensor(z, {2}),
                                  .losses = tensor(losses, {2}),
                                  .dprobability = tensor(dprobability, {2, 4}),
                                  .tokens = 10,
                                  .coefficient = 0.5,
                                  .pooled = pooled});
    EXPECT_DOUBLE_EQ(losses[0], 2);
    EXPECT_DOUBLE_EQ(losses[1], 2);
    for (double d : dprobability) EXPECT_DOUBLE_EQ(d, 0.5 * 4 * 0.5 / (2 * 10));
  }
}

TEST_F(Ref, PooledAndPerLayerBalanceDifferWhenLayersDo) {
  Values load{1, 0, 0, 1}, importance{1, 0, 0, 1}, z{0, 0}, losses(2);
  ops::BalanceLoss op{.load = tensor(load, {2, 2}),
                      .importance = tensor(importance, {2, 2}),
                      .z = tensor(z, {2}),
                      .losses = tensor(losses, {2}),
                      .dprobability = {},
                      .tokens = 4};
  backend_.run(op);
  EXPECT_DOUBLE_EQ(losses[0], 2);  // each layer sends everything to one expert
  op.pooled = true;
  backend_.run(op);
  EXPECT_DOUBLE_EQ(losses[0], 1);  // together they are even
}

TEST_F(Ref, UniformLogitsCostLogV) {
  Values logits(14, -3.25), loss(2), scale{2}, dlogits(14);
  std::vector<int32_t> labels{4, ops::kIgnoredLabel};
  backend_.run(ops::CrossEntropy{.logits = tensor(logits, {2, 7}),
                                 .labels = tensor(labels, {2}),
                                 .loss = tensor(loss, {2}),
                                 .scale = tensor(scale, {1}),
                                 .dlogits = tensor(dlogits, {2, 7})});
  EXPECT_NEAR(loss[0], std::log(7), 1e-14);
  EXPECT_EQ(loss[1], 0);
  for (size_t v = 0; v < 7; ++v) {
    EXPECT_NEAR(dlogits[v], 2 * (1.0 / 7 - (v == 4 ? 1 : 0)), 1e-14);
    EXPECT_EQ(dlogits[7 + v], 0);
  }
}

TEST_F(Ref, AdamWTakesAFirstStepOfTheLearningRate) {
  Values value{1, -2}, grad{0.5, -4}, m(2), v(2), schedule{0.1, 0.1, 0.05, 1}, norm{0.25 + 16};
  ops::AdamW op{.value = tensor(value, {2}),
                .grad = tensor(grad, {2}),
                .m = tensor(m, {2}),
                .v = tensor(v, {2}),
                .model = {},
                .schedule = tensor(schedule, {4}),
                .squared_norm = tensor(norm, {1}),
                .eps = 0,
                .weight_decay = 0.2};
  backend_.run(op);  // whatever the gradient's size, its sign times the rate, after the decay
  EXPECT_NEAR(value[0], 1 * (1 - 0.02) - 0.1, 1e-14);
  EXPECT_NEAR(value[1], -2 * (1 - 0.02) + 0.1, 1e-14);
  const Values before = value;
  norm[0] = std::numeric_limits<double>::infinity();
  backend_.run(op);
  EXPECT_EQ(value, before);
}

class Sampling : public Ref {
 protected:
  /// How often each token is drawn from these logits at `draws` positions, as shares.
  Values shares(Values logits, ops::SamplingSettings settings, int draws = 20000) {
    const auto vocabulary = static_cast<int64_t>(logits.size());
    Values count(logits.size());
    std::vector<int32_t> position{0}, token{0};
    for (int i = 0; i < draws; ++i) {
      position[0] = i;
      backend_.run(ops::Sample{.logits = tensor(logits, {1, vocabulary}),
                               .settings = Tensor(&settings, {1, sizeof settings}, Dtype::u8),
                               .history = {},
                               .positions = tensor(position, {1}),
                               .tokens = tensor(token, {1}),
                               .log_probability = {}});
      count[static_cast<size_t>(token[0])] += 1.0 / draws;
    }
    return count;
  }

  static void expect_near(const Values& shares, const Values& expected) {
    for (size_t v = 0; v < shares.size(); ++v)
      EXPECT_NEAR(shares[v], expected[v], expected[v] == 0 ? 0 : 0.015) << "token " << v;
  }

  const Values logits_{std::log(0.1), std::log(0.4), std::log(0.2), std::log(0.3)};
};

TEST_F(Sampling, FollowsTheDistribution) { expect_near(shares(logits_, {}), {0.1, 0.4, 0.2, 0.3}); }

TEST_F(Sampling, TemperatureFlattens) {
  const double roots = std::sqrt(.1) + std::sqrt(.4) + std::sqrt(.2) + std::sqrt(.3);
  expect_near(shares(logits_, {.temperature = 2}), {std::sqrt(.1) / roots, std::sqrt(.4) / roots,
                                                    std::sqrt(.2) / roots, std::sqrt(.3) / roots});
  expect_near(shares(logits_, {.temperature = 0}, 10), {0, 1, 0, 0});
}

TEST_F(Sampling, FiltersKeepTheMostProbable) {
  expect_near(shares(logits_, {.top_k = 2}), {0, 4.0 / 7, 0, 3.0 / 7});
  expect_near(shares(logits_, {.top_p = 0.5F}), {0, 4.0 / 7, 0, 3.0 / 7});
  expect_near(shares(logits_, {.top_p = 0.75F}), {0, 4.0 / 9, 2.0 / 9, 3.0 / 9});
  expect_near(shares(logits_, {.top_p = 0}, 100), {0, 1, 0, 0});
  expect_near(shares(logits_, {.min_p = 0.6F}), {0, 4.0 / 7, 0, 3.0 / 7});
  // After top-k the masses are 4/7 and 3/7, so a top-p of 0.5 is reached by the first alone.
  expect_near(shares(logits_, {.top_k = 2, .top_p = 0.5F}, 100), {0, 1, 0, 0});
}

TEST_F(Sampling, SurvivesLogitsThatAreNotFinite) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  expect_near(shares({kNan, 0, -kInfinity, 0}, {}), {0, 0.5, 0, 0.5});
  expect_near(shares({0, kInfinity, 0, kInfinity}, {}, 100), {0, 1, 0, 0});
  expect_near(shares({kNan, kNan, -kInfinity}, {}, 100), {1, 0, 0});
}

TEST_F(Ref, RandomNormalHasTheRightMoments) {
  Values x(100001);
  backend_.run(ops::RandomNormal{tensor(x, {100001}), 12, 5, 3});
  double sum = 0, squares = 0;
  for (double value : x) {
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / 100001, 0, 0.04);
  EXPECT_NEAR(squares / 100001, 9, 0.15);
  Values prefix(10);
  backend_.run(ops::RandomNormal{tensor(prefix, {10}), 12, 5, 3});
  EXPECT_EQ(prefix, Values(x.begin(), x.begin() + 10));
}

TEST_F(Ref, DropoutDropsItsShareAndKeepsTheMean) {
  Values x(100000, 1.0), y(100000);
  int64_t seed = 1;
  backend_.run(ops::Dropout{.x = tensor(x, {100000}),
                            .y = tensor(y, {100000}),
                            .seed = Tensor(&seed, {1}, Dtype::i64),
                            .probability = 0.25,
                            .stream = 2});
  double sum = 0;
  for (double value : y) {
    EXPECT_TRUE(value == 0 || std::abs(value - 4.0 / 3) < 1e-15);
    sum += value;
  }
  EXPECT_NEAR(sum / 100000, 1, 0.01);
}

}  // namespace
}  // namespace mixtral::ref
