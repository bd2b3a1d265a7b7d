// The preference losses against their formulas, and that training on pairs does what it should.
#include "train/preference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "tests/train/rig.h"
#include "train/adapter_checkpoint.h"

namespace mixtral {
namespace {

using Loss = PreferenceSettings::Loss;

struct LossCase {
  const char* name;
  PreferenceSettings settings;
  friend void PrintTo(const LossCase& c, std::ostream* out) { *out << c.name; }
};

class PairLosses : public ::testing::TestWithParam<LossCase> {
 protected:
  const PreferenceSettings settings_ = GetParam().settings;
  const PairLogProbabilities pair_{.policy_chosen = -12.5,
                                   .policy_rejected = -9.25,
                                   .reference_chosen = -13,
                                   .reference_rejected = -11.5,
                                   .chosen_tokens = 5,
                                   .rejected_tokens = 3};
};

TEST_P(PairLosses, FollowTheirFormulas) {
  const bool means = settings_.loss != Loss::sigmoid;
  const double chosen = (pair_.policy_chosen - pair_.reference_chosen) / (means ? 5 : 1);
  const double rejected = (pair_.policy_rejected - pair_.reference_rejected) / (means ? 3 : 1);
  const double h = chosen - rejected, beta = settings_.beta, e = settings_.label_smoothing;
  const double expected = settings_.loss == Loss::ipo ? std::pow(h - 1 / (2 * beta), 2)
                                                      : (1 - e) * std::log1p(std::exp(-beta * h)) +
                                                            e * std::log1p(std::exp(beta * h));
  const PairLoss loss = pair_loss(settings_, pair_);
  EXPECT_NEAR(loss.loss, expected, 1e-12);
  EXPECT_NEAR(loss.chosen_reward, beta * chosen, 1e-12);
  EXPECT_NEAR(loss.rejected_reward, beta * rejected, 1e-12);
}

TEST_P(PairLosses, HaveTheSlopesOfCentralDifferences) {
  const PairLoss loss = pair_loss(settings_, pair_);
  auto difference = [&](double PairLogProbabilities::* field) {
    constexpr double kStep = 1e-5;
    PairLogProbabilities above = pair_, below = pair_;
    above.*field += kStep;
    below.*field -= kStep;
    return (pair_loss(settings_, above).loss - pair_loss(settings_, below).loss) / (2 * kStep);
  };
  EXPECT_NEAR(loss.chosen_slope, difference(&PairLogProbabilities::policy_chosen), 1e-6);
  EXPECT_NEAR(loss.rejected_slope, difference(&PairLogProbabilities::policy_rejected), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(
    All, PairLosses,
    ::testing::Values(LossCase{"sigmoid", {.beta = 0.1}},
                      LossCase{"smoothed", {.beta = 0.5, .label_smoothing = 0.2}},
                      LossCase{"normalized",
                               {.loss = Loss::normalized, .beta = 2, .label_smoothing = 0.1}},
                      LossCase{"ipo", {.loss = Loss::ipo, .beta = 0.3}}),
    [](const auto& c) { return c.param.name; });

TEST(PairLoss, StaysFiniteFarFromZero) {
  for (const double distance : {-1e4, 1e4}) {
    const PairLoss loss = pair_loss({.beta = 1}, {.policy_chosen = distance});
    EXPECT_TRUE(std::isfinite(loss.loss)) << distance;
    EXPECT_TRUE(std::isfinite(loss.chosen_slope)) << distance;
  }
}

TEST(PreferenceSettings, NameTheFlagThatMakesNoSense) {
  EXPECT_NE(message_of([] { PreferenceSettings{.beta = 0}.validate(); }).find("beta: expected"),
            std::string::npos);
  EXPECT_NE(message_of([] {
              PreferenceSettings{.label_smoothing = 0.5}.validate();
            }).find("label-smoothing"),
            std::string::npos);
  EXPECT_NE(message_of([] { parse_preference_loss("hinge"); }).find("sigmoid"), std::string::npos);
}

/// Pairs that share a prompt: the chosen one goes on upwards, the rejected one downwards.
HostBatch counting_pairs() {
  HostBatch batch;
  for (int32_t start = 8; start < 24; start += 4) {
    for (const int32_t stride : {1, -1}) {
      std::vector<int32_t> tokens{start, start}, labels{-100, -100};
      for (int32_t i = 1; i < 6; ++i) {
        tokens.push_back(start + i * stride);
        labels.push_back(tokens.back());
      }
      batch.append(tokens, labels);
    }
  }
  return batch;
}

class PreferenceTraining : public ::testing::TestWithParam<std::tuple<std::string, Loss>> {};

TEST_P(PreferenceTraining, RaisesMarginAndAccuracyOfAnAdapterAgainstItsBase) {
  const auto& [device, loss] = GetParam();
  if (!testing::have_device(device)) GTEST_SKIP() << "no GPU";
  const auto backend = make_backend(device, 1);
  Mixtral model(*backend, testing::small_model(), {});
  nn::initialise(*backend, model.parameters(), {.seed = 5, .deviation = 0.1});
  Adapter adapter(
      *backend, model,
      new_adapter({.targets = {"q_proj", "v_proj", "w1", "w2", "lm_head"}}, model.config()),
      {.trainable = true, .seed = 1});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  PreferenceCriterion criterion(ctx, {.policy = model, .adapter = &adapter},
                                {.loss = loss, .beta = 0.5});
  Optimizer optimizer(*backend, adapter.store().groups(), {.weight_decay = 0});
  const HostBatch batch = counting_pairs();
  const StepSize step{.weight = criterion.weight(batch), .batches = 1};
  EXPECT_EQ(step.weight, 4);
  Figures first, last;
  for (int i = 0; i < 60; ++i) {
    arena.reset();
    criterion.begin(ctx, 0);
    criterion.add_gradients(ctx, batch, step, 0);
    last = criterion.read(ctx, 0, step);
    if (i == 0) first = last;
    optimizer.step(ctx, 1e-2, ctx.allocate({1}, Dtype::f64));
  }
  // A new adapter changes nothing, so that policy and reference agree to the bit.
  EXPECT_EQ(first.more[0], (std::pair<std::string, double>("margin", 0)));
  EXPECT_EQ(first.more[1], (std::pair<std::string, double>("accuracy", 0.5)));
  EXPECT_LT(last.loss, first.loss);
  EXPECT_GT(last.more[0].second, 0);
  EXPECT_EQ(last.more[1].second, 1);
  // The same figures without gradients.
  criterion.begin(ctx, 1);
  criterion.add_losses(ctx, batch, step, 1);
  const double scored = criterion.read(ctx, 1, step).loss;
  criterion.begin(ctx, 2);
  criterion.add_gradients(ctx, batch, step, 2);
  EXPECT_EQ(criterion.read(ctx, 2, step).loss, scored);
}

INSTANTIATE_TEST_SUITE_P(All, PreferenceTraining,
                         ::testing::Combine(::testing::ValuesIn(testing::devices()),
                                            ::testing::Values(Loss::sigmoid, Loss::normalized,
                                                              Loss::ipo)));

}  // namespace
}  // namespace mixtral
