#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

constexpr int64_t kCount = 256;

/// One group of values on the reference backend, with its gradient.
struct Group {
  Group(Backend& backend, Dtype dtype)
      : value_buffer(backend, kCount * 4), grad_buffer(backend, kCount * 4) {
    group = {.value = value_buffer.tensor({kCount}, dtype),
             .grad = grad_buffer.tensor({kCount}, Dtype::f32),
             .decay = true,
             .trainable = true};
    backend.run(ops::RandomNormal{.x = group.value, .seed = 5, .stream = 1});
  }
  Buffer value_buffer, grad_buffer;
  nn::ParameterStore::Group group;
};

struct OptimizerRig {
  std::unique_ptr<Backend> backend = make_backend("ref");
  Arena arena{*backend};
  Context ctx{*backend, arena, Dtype::f32};
  Buffer norm_buffer{*backend, 8};
  Tensor norm = norm_buffer.tensor({1}, Dtype::f64);

  /// Steps with random gradients that are the same for every optimizer.
  void steps(Optimizer& optimizer, const Group& group, int count) {
    for (int i = 0; i < count; ++i) {
      ctx.run(ops::RandomNormal{.x = group.group.grad, .seed = 6, .stream = uint64_t(i)});
      optimizer.step(ctx, 1e-2, norm);
    }
  }
};

TEST(Optimizer, KeepsAnExactMasterOfBf16Values) {
  OptimizerRig rig;
  Group narrow(*rig.backend, Dtype::bf16), exact(*rig.backend, Dtype::f32);
  rig.backend->run(ops::Convert{.x = narrow.group.value, .y = exact.group.value});
  Optimizer a(*rig.backend, {narrow.group}, {}), b(*rig.backend, {exact.group}, {});
  EXPECT_EQ(a.state_bytes(), kCount * 12);
  EXPECT_EQ(b.state_bytes(), kCount * 8);
  rig.steps(a, narrow, 20);
  rig.steps(b, exact, 20);
  for (int64_t i = 0; i < kCount; ++i)
    EXPECT_EQ(narrow.group.value.as<bf16>()[i].bits, bf16(exact.group.value.as<float>()[i]).bits);
}

TEST(Optimizer, ClearsGradientsAndLeavesFrozenGroupsAlone) {
  OptimizerRig rig;
  Group trained(*rig.backend, Dtype::f32), frozen(*rig.backend, Dtype::f32);
  frozen.group.trainable = false;
  frozen.group.grad = {};
  const float before = frozen.group.value.as<float>()[3];
  Optimizer optimizer(*rig.backend, {trained.group, frozen.group}, {});
  rig.steps(optimizer, trained, 3);
  EXPECT_EQ(frozen.group.value.as<float>()[3], before);
  for (const float g : trained.group.grad.span<float>()) EXPECT_EQ(g, 0);
  EXPECT_EQ(optimizer.steps(), 3);
}

TEST(Optimizer, TakesHalfTheMemoryWithBf16StateAndStaysClose) {
  OptimizerRig rig;
  Group a(*rig.backend, Dtype::f32), b(*rig.backend, Dtype::f32);
  Optimizer full(*rig.backend, {a.group}, {}), half(*rig.backend, {b.group}, {.bf16_state = true});
  EXPECT_EQ(half.state_bytes() * 2, full.state_bytes());
  rig.steps(full, a, 30);
  rig.steps(half, b, 30);
  double difference = 0, size = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = a.group.value.as<float>()[i], y = b.group.value.as<float>()[i];
    difference += (x - y) * (x - y);
    size += x * x;
  }
  EXPECT_LT(std::sqrt(difference / size), 2e-3);
}

TEST(Optimizer, LeavesGradientsThatTheNextStepAssigns) {
  OptimizerRig rig;
  Group group(*rig.backend, Dtype::f32);
  group.group.one_product = 5;
  Optimizer optimizer(*rig.backend, {group.group}, {});
  rig.ctx.run(ops::Fill{.x = group.group.grad, .value = 2});
  std::vector<double> schedule{1e-3, 0.1, 0.05, 1};
  optimizer.update(rig.ctx, Tensor(std::span(schedule)), rig.norm, Clear::added);
  for (int64_t i = 0; i < kCount; ++i)
    EXPECT_EQ(group.group.grad.as<float>()[i], i < 5 ? 2 : 0) << i;
  optimizer.update(rig.ctx, Tensor(std::span(schedule)), rig.norm, Clear::all);
  for (int64_t i = 0; i < kCount; ++i) EXPECT_EQ(group.group.grad.as<float>()[i], 0) << i;
}

TEST(Optimizer, ReportsTheNormBeforeClipping) {
  OptimizerRig rig;
  Group group(*rig.backend, Dtype::f32);
  Optimizer optimizer(*rig.backend, {group.group}, {.clip = 0.1});
  rig.ctx.run(ops::Fill{.x = group.group.grad, .value = 2});
  optimizer.step(rig.ctx, 1e-3, rig.norm);
  EXPECT_DOUBLE_EQ(rig.norm.as<double>()[0], 4.0 * kCount);
}

TEST(Optimizer, RefusesStateOfAnotherKind) {
  const Scratch scratch;
  TrainSettings settings = small_settings(2);
  const Rig::Options options{.device = "ref"};
  Rig full(scratch.path() / "a", settings, options);
  const fs::path file = scratch.path() / "optimizer.safetensors";
  full.trainer->optimizer().save(*full.backend, full.model.parameters(), file);
  Optimizer half(*full.backend, full.model.store().groups(), {.bf16_state = true});
  try {
    half.load(*full.backend, full.model.parameters(), file, 1);
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("F32"), std::string::npos) << error.what();
  }
}

// A run that kept its weights in bf16, with f32 copies, goes on where they are f32.
TEST(Optimizer, MastersBecomeTheValuesOfARunWithoutMasters) {
  const Scratch scratch;
  OptimizerRig rig;
  Group narrow(*rig.backend, Dtype::bf16), exact(*rig.backend, Dtype::f32);
  const auto source = [](const Group& group) -> nn::ParameterSource {
    return [&group](const nn::ParameterVisitor& visit) {
      nn::Parameter p;
      p.shape = {kCount};
      p.parts.push_back({"w", 0, {kCount}});
      p.value = group.group.value;
      p.grad = group.group.grad;
      visit(p);
    };
  };
  Optimizer a(*rig.backend, {narrow.group}, {}), b(*rig.backend, {exact.group}, {});
  rig.steps(a, narrow, 5);
  const fs::path file = scratch.path() / "optimizer.safetensors";
  a.save(*rig.backend, source(narrow), file);
  b.load(*rig.backend, source(exact), file, 5);
  EXPECT_NE(exact.group.value.as<float>()[0], float(narrow.group.value.as<bf16>()[0]));
  rig.steps(a, narrow, 5);
  rig.steps(b, exact, 5);
  for (int64_t i = 0; i < kCount; ++i)
    EXPECT_EQ(narrow.group.value.as<bf16>()[i].bits, bf16(exact.group.value.as<float>()[i]).bits);

  b.save(*rig.backend, source(exact), file);
  try {
    a.load(*rig.backend, source(narrow), file, 10);
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("dtype fp32"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace mixtral::testing
