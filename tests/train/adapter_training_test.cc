// What training an adapter must and must not touch.
#include <gtest/gtest.h>

#include "model/adapter.h"
#include "tests/train/rig.h"

namespace mixtral {
namespace {

/// One step's gradients of an adapter, and the arena's peak.
struct Step {
  std::map<std::string, std::vector<float>> gradients;
  double loss = 0;
  int64_t peak = 0;
};

Step step_of(AdapterFile file, const Recompute& recompute) {
  const auto backend = make_backend("cpu", 1);
  Mixtral model(*backend, testing::small_model(), {});
  nn::initialise(*backend, model.parameters(), {.seed = 5, .deviation = 0.1});
  Adapter adapter(*backend, model, std::move(file), {.trainable = true, .seed = 2});
  // B starts at zero, and A's gradient with it; in the first layer it stays so.
  adapter.parameters()([&](nn::Parameter& p) {
    const bool first = p.parts.front().name.find("layers.0.") != std::string::npos;
    if (p.role == nn::Role::lora_b && !first) backend->run(ops::Fill{.x = p.value, .value = 0.05});
  });
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  LanguageModelCriterion criterion(ctx, model, {.objective = {}, .recompute = recompute});
  testing::CountingSource source(3);
  const HostBatch batch = *source.next();
  const StepSize size{.weight = batch.label_count(), .batches = 1};
  criterion.begin(ctx, 0);
  criterion.add_gradients(ctx, batch, size, 0);
  Step step;
  step.loss = criterion.read(ctx, 0, size).loss;
  step.peak = arena.peak();
  adapter.parameters()([&](nn::Parameter& p) {
    const auto values = p.grad.span<float>();
    step.gradients[p.parts.front().name] = {values.begin(), values.end()};
  });
  EXPECT_EQ(model.store().gradient_bytes(), 0);
  return step;
}

Step step_of(const AdapterSpec& spec, const Recompute& recompute) {
  return step_of(new_adapter(spec, testing::small_model()), recompute);
}

TEST(AdapterTraining, BackwardStopsBelowTheLowestTrainedLayerWithTheSameGradients) {
  for (const Recompute& recompute : {Recompute(false), Recompute(true), Recompute(true, 1)}) {
    const Step last = step_of({.targets = {"q_proj", "w2"}, .last_layers = 1}, recompute);
    // The updates of the first layer are zero: the same function, but backward goes all the way.
    const Step all = step_of({.targets = {"q_proj", "w2"}}, recompute);
    EXPECT_EQ(last.loss, all.loss);
    EXPECT_LT(last.gradients.size(), all.gradients.size());
    for (const auto& [name, gradient] : last.gradients) {
      EXPECT_EQ(gradient, all.gradients.at(name)) << name;
      EXPECT_NE(gradient, std::vector<float>(gradient.size())) << name;
    }
    EXPECT_LT(last.peak, all.peak);
  }
}

TEST(AdapterTraining, WhereTheHeadAloneIsTrainedNothingIsKeptOfTheBlocks) {
  for (const Recompute& recompute : {Recompute(false), Recompute(true), Recompute(true, 1)}) {
    const Step head = step_of({.targets = {"lm_head"}}, recompute);
    // With an update of the first layer that is zero: the same function, all the way back.
    AdapterFile both = new_adapter({.targets = {"q_proj", "lm_head"}}, testing::small_model());
    std::erase_if(both.modules, [](const AdapterModule& module) { return module.layer > 0; });
    const Step all = step_of(std::move(both), recompute);
    EXPECT_EQ(head.loss, all.loss);
    EXPECT_EQ(head.gradients.size() + 2, all.gradients.size());
    for (const auto& [name, gradient] : head.gradients) {
      EXPECT_EQ(gradient, all.gradients.at(name)) << name;
      EXPECT_NE(gradient, std::vector<float>(gradient.size())) << name;
    }
    EXPECT_LT(head.peak, all.peak);
  }
}

TEST(AdapterTraining, RecomputingAnyPartOfTheBlocksChangesMemoryAlone) {
  const AdapterSpec spec{.targets = {"q_proj", "w2"}};
  const Step none = step_of(spec, false), some = step_of(spec, {true, 1}),
             all = step_of(spec, true);
  EXPECT_EQ(some.loss, none.loss);
  EXPECT_EQ(some.gradients, none.gradients);
  EXPECT_EQ(all.gradients, none.gradients);
  // With two layers, what is recomputed in one needs the room that keeping it would have taken.
  EXPECT_LE(all.peak, some.peak);
  EXPECT_EQ(step_of(spec, {true, 2}).peak, none.peak);
}

}  // namespace
}  // namespace mixtral
