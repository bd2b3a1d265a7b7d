// Steps that are recorded and replayed: the same bits as steps that run as they are, and nothing is
// replayed onto memory that has moved.
#include "train/step_runner.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/fixtures.h"
#include "tests/train/rig.h"
#include "train/adapter_checkpoint.h"
#include "train/preference.h"

namespace mixtral::testing {
namespace {

using Lengths = std::vector<int64_t>;  // the lengths of a micro-batch's sequences

HostBatch random_batch(const Lengths& lengths, uint64_t seed) {
  HostBatch batch;
  RandomStream random(seed);
  for (const int64_t length : lengths) {
    std::vector<int32_t> tokens, labels;
    for (int64_t i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(random.below(32)));
      // Another number of labels in every batch, so that their scale differs between steps.
      labels.push_back(random.below(4) == 0 ? ops::kIgnoredLabel : tokens.back());
    }
    batch.append(tokens, labels);
  }
  return batch;
}

struct Case {
  std::string device = "cpu";
  bool adapter = false;  // LoRA with dropout; else all weights, with optimizer state in bf16
  bool bf16 = false;     // weights and activations

  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.device << (c.adapter ? "_lora" : "_full") << (c.bf16 ? "_bf16" : "");
  }
};

/// A model in training, and a fingerprint of everything a step changes.
class Training {
 public:
  Training(const Case& c, bool record)
      : backend_(make_backend(c.device, 2)),
        arena_(*backend_),
        ctx_(*backend_, arena_, c.bf16 ? Dtype::bf16 : Dtype::f32),
        model_(*backend_, small_model(),
               {.weights = ctx_.dtype(), .compute = ctx_.dtype(), .trainable = !c.adapter}) {
    nn::initialise(*backend_, model_.parameters(), {.seed = 5, .deviation = 0.1});
    if (c.adapter)
      adapter_ = std::make_unique<Adapter>(
          *backend_, model_,
          new_adapter({.targets = {"q_proj", "v_proj", "w1", "w2"}, .dropout = 0.2},
                      model_.config()),
          Adapter::Options{.trainable = true, .seed = 2});
    criterion_ = std::make_unique<LanguageModelCriterion>(
        ctx_, model_,
        LanguageModelCriterion::Settings{
            .objective = {.aux_coefficient = 0.02, .z_coefficient = 1e-3}});
    OptimizerSettings settings;
    settings.bf16_state = !c.adapter;
    optimizer_ = std::make_unique<Optimizer>(*backend_, groups(), settings);
    runner_ = std::make_unique<StepRunner>(ctx_, *criterion_, *optimizer_, record);
  }

  /// A step of two micro-batches of these shapes; its losses and its norm.
  void step(const Lengths& lengths) {
    StepRunner::Step step;
    for (int i = 0; i < 2; ++i) {
      step.batches.push_back(random_batch(lengths, ++drawn_));
      step.dropout_seeds.push_back(drawn_ * 977);
    }
    step.lr = 1e-2 / static_cast<double>(drawn_);
    const StepSize size = runner_->stage(std::move(step));
    runner_->run();
    const Figures figures = criterion_->read(ctx_, 0, size);
    for (const double value :
         {figures.loss, figures.cross_entropy, figures.aux, figures.z, figures.squared_norm})
      results_.push_back(value);
  }

  /// In the same arena as the steps, as the training loop does.
  void evaluate(const Lengths& lengths) {
    arena_.reset();
    const HostBatch batch = random_batch(lengths, 5);
    const StepSize size{.weight = criterion_->weight(batch), .batches = 1};
    criterion_->begin(ctx_, 0);
    criterion_->add_losses(ctx_, batch, size, 0);
    results_.push_back(criterion_->read(ctx_, 0, size).loss);
  }

  std::vector<double> results() const { return results_; }
  std::vector<uint8_t> weights() const {
    std::vector<uint8_t> all;
    for (const auto& group : groups()) {
      if (!group.trainable) continue;
      std::vector<uint8_t> bytes(static_cast<size_t>(group.value.bytes()));
      const Tensor device(group.value.data(), {group.value.bytes()}, Dtype::u8);
      backend_->download(device, Tensor(std::span(bytes)));
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  std::string state() {
    const Scratch scratch;
    const auto parameters = adapter_ ? adapter_->parameters() : model_.parameters();
    return optimizer_->save(*backend_, parameters, scratch.path() / "state.safetensors").hex();
  }
  /// Fills what a step's first backward pass should assign with numbers that would be noticed.
  void spoil_assigned_gradients() {
    int64_t spoiled = 0;
    model_.for_each_parameter([&](nn::Parameter& p) {
      if (!p.grad || !p.one_product()) return;
      backend_->run(ops::Fill{.x = p.grad, .value = 1e3});
      ++spoiled;
    });
    EXPECT_GT(spoiled, 0);
  }
  const StepRunner& runner() const { return *runner_; }
  Arena& arena() { return arena_; }

 private:
  const std::vector<nn::ParameterStore::Group>& groups() const {
    return adapter_ ? adapter_->store().groups() : model_.store().groups();
  }

  std::unique_ptr<Backend> backend_;
  Arena arena_;
  Context ctx_;
  Mixtral model_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<LanguageModelCriterion> criterion_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<StepRunner> runner_;
  uint64_t drawn_ = 0;
  std::vector<double> results_;
};

class RecordedSteps : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!have_device(GetParam().device)) GTEST_SKIP() << "no GPU";
  }
};

/// Steps that train all weights: an adapter's gradients are all added to.
class FullSteps : public RecordedSteps {};

const Lengths kEven{12, 12}, kUneven{9, 20, 3}, kTurned{3, 9, 20}, kLong{30, 30, 30}, kOne{7};

TEST_P(RecordedSteps, HaveTheSameBitsAsStepsThatRunAsTheyAre) {
  std::vector<std::vector<double>> results;
  std::vector<std::vector<uint8_t>> weights;
  std::vector<std::string> states;
  for (const bool record : {true, false}) {
    Training training(GetParam(), record);
    for (int i = 0; i < 4; ++i) training.step(kEven);
    training.step(kUneven);  // another shape in between
    training.evaluate(kEven);
    for (int i = 0; i < 3; ++i) training.step(kEven);
    training.evaluate(kLong);
    training.arena().reserve(int64_t{1} << 23);  // moves the activations
    for (int i = 0; i < 4; ++i) training.step(kEven);
    for (int i = 0; i < 3; ++i) training.step(kUneven);
    training.step(kTurned);  // the recording of kUneven serves it
    EXPECT_EQ(training.runner().replayed() > 0, record);
    results.push_back(training.results());
    weights.push_back(training.weights());
    states.push_back(training.state());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(weights[0], weights[1]);
  EXPECT_EQ(states[0], states[1]);
}

TEST_P(RecordedSteps, AreReplayedFromTheThirdTimeOnAndOnlyWhileNothingMoved) {
  Training training(GetParam(), true);
  training.arena().reserve(int64_t{1} << 22);
  auto replayed = [&](const Lengths& lengths) {
    const int64_t before = training.runner().replayed();
    training.step(lengths);
    return training.runner().replayed() > before;
  };
  EXPECT_FALSE(replayed(kEven));
  EXPECT_FALSE(replayed(kEven));
  EXPECT_TRUE(replayed(kEven));
  EXPECT_FALSE(replayed(kOne));
  EXPECT_TRUE(replayed(kEven));
  training.evaluate(kOne);
  EXPECT_TRUE(replayed(kEven));
  training.arena().reserve(int64_t{1} << 23);  // moves the activations
  EXPECT_FALSE(replayed(kEven));
  EXPECT_FALSE(replayed(kEven));
  EXPECT_TRUE(replayed(kEven));
  EXPECT_FALSE(replayed(kLong));  // has more inputs: their block moves
  EXPECT_FALSE(replayed(kEven));
  EXPECT_FALSE(replayed(kEven));
  EXPECT_TRUE(replayed(kEven));
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& device : devices())
    for (const bool adapter : {false, true}) {
      all.push_back({.device = device, .adapter = adapter});
      if (device == "cuda") all.push_back({.device = device, .adapter = adapter, .bf16 = true});
    }
  return all;
}

std::vector<Case> full_cases() {
  std::vector<Case> full = cases();
  std::erase_if(full, [](const Case& c) { return c.adapter; });
  return full;
}

INSTANTIATE_TEST_SUITE_P(All, FullSteps, ::testing::ValuesIn(full_cases()),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(All, RecordedSteps, ::testing::ValuesIn(cases()),
                         ::testing::PrintToStringParamName());

TEST(StepRunner, KeepsAFewProgramsOfTheLatestShapes) {
  Training training({}, true);
  training.arena().reserve(int64_t{1} << 22);
  training.step(kLong);  // the largest block of inputs
  for (int64_t length = 2; length < 12; ++length)
    for (int i = 0; i < 3; ++i) training.step({length});
  EXPECT_EQ(training.runner().programs(), static_cast<int64_t>(StepRunner::kMostPrograms));
  EXPECT_EQ(training.runner().replayed(), 10);
}

TEST_P(FullSteps, DoNotReadGradientsThatTheyAssign) {
  std::vector<std::vector<double>> results;
  std::vector<std::vector<uint8_t>> weights;
  for (const bool spoiled : {false, true}) {
    Training training(GetParam(), true);
    for (int i = 0; i < 4; ++i) {
      if (spoiled) training.spoil_assigned_gradients();
      training.step(kEven);
    }
    results.push_back(training.results());
    weights.push_back(training.weights());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(weights[0], weights[1]);
}

TEST(StepRunner, RunsPreferenceStepsAsTheyAre) {
  const auto backend = make_backend("ref");
  Mixtral model(*backend, small_model(), {});
  nn::initialise(*backend, model.parameters(), {.seed = 5, .deviation = 0.1});
  Adapter adapter(*backend, model, new_adapter({.targets = {"q_proj", "w1"}}, model.config()),
                  {.trainable = true, .seed = 1});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  PreferenceCriterion criterion(ctx, {.policy = model, .adapter = &adapter}, {});
  Optimizer optimizer(*backend, adapter.store().groups(), {});
  StepRunner runner(ctx, criterion, optimizer, true);
  std::vector<double> losses;
  for (int i = 0; i < 4; ++i) {
    const StepSize size =
        runner.stage({.batches = {random_batch(kEven, 3), random_batch(kEven, 4)}, .lr = 1e-2});
    EXPECT_EQ(size.weight, 2);
    runner.run();
    losses.push_back(criterion.read(ctx, 0, size).loss);
  }
  EXPECT_LT(losses[3], losses[0]);
  EXPECT_EQ(runner.programs(), 0);
  EXPECT_EQ(optimizer.steps(), 4);
}

TEST(StepRunner, RefusesTokensOutsideTheVocabularyBeforeTheStep) {
  const auto backend = make_backend("ref");
  Mixtral model(*backend, small_model(), {.trainable = true});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  LanguageModelCriterion criterion(ctx, model, {});
  Optimizer optimizer(*backend, model.store().groups(), {});
  StepRunner runner(ctx, criterion, optimizer, true);
  StepRunner::Step step;
  step.batches.emplace_back().append(std::vector<int32_t>{1, 99, 2});
  EXPECT_THROW(runner.stage(std::move(step)), Error);
  EXPECT_EQ(optimizer.steps(), 0);
}

}  // namespace
}  // namespace mixtral::testing
