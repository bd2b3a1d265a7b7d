#include "train/training_plan.h"

#include <gtest/gtest.h>

#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

TrainingShape shape_of(const std::string& config) {
  TrainingShape shape;
  shape.config = builtin_config(config);
  shape.rows = 8;
  shape.context = 128;
  shape.options.context = 128;
  return shape;
}

TEST(TrainingPlan, CountsWeightsGradientsAndStateExactly) {
  const auto planner = make_planning_backend();
  const TrainingShape shape = shape_of("seed");
  const MemoryPlan plan = plan_training(*planner, shape);
  const auto weights = 4 * count_parameters(shape.config).total;
  // Parameters are aligned within their groups, and the rotary table is counted with the weights.
  EXPECT_NEAR(static_cast<double>(plan.bytes_of("weights")), static_cast<double>(weights), 1e6);
  EXPECT_NEAR(static_cast<double>(plan.bytes_of("gradients")), static_cast<double>(weights), 1e6);
  EXPECT_EQ(plan.bytes_of("optimizer state"), 2 * plan.bytes_of("gradients"));
  EXPECT_EQ(plan.bytes_of("nothing"), 0);
}

TEST(TrainingPlan, IsWhatAStepReallyUses) {
  const auto planner = make_planning_backend();
  for (const Recompute& recompute : {Recompute(false), Recompute(true), Recompute(true, 1)}) {
    const Scratch scratch;
    TrainingShape shape = shape_of("tiny");
    shape.config = small_model();
    shape.rows = 2;
    shape.context = shape.options.context = 12;
    shape.recompute = recompute;
    const MemoryPlan plan = plan_training(*planner, shape);

    const auto backend = make_backend("cpu", 1);
    Mixtral::Options options = shape.options;
    options.trainable = true;
    Mixtral model(*backend, shape.config, options);
    nn::initialise(*backend, model.parameters(), {});
    Arena arena(*backend);
    arena.reserve(plan.bytes_of("activations") + plan.bytes_of("logits, a slice"));
    const int64_t reserved = arena.reserved();
    Context ctx(*backend, arena, Dtype::f32);
    LanguageModelCriterion criterion(ctx, model, {.recompute = recompute});
    CountingSource source(1);
    const HostBatch batch = *source.next();
    criterion.begin(ctx, 0);
    criterion.add_gradients(ctx, batch, {batch.label_count(), 1}, 0);
    EXPECT_EQ(arena.reserved(), reserved) << "the step needed more than was planned";
    EXPECT_EQ(arena.peak(), plan.bytes_of("activations") + plan.bytes_of("logits, a slice"));
  }
}

TEST(TrainingPlan, OfAPassIsWhatThePassReallyUses) {
  const auto planner = make_planning_backend();
  const auto backend = make_backend("cpu", 1);
  TrainingShape shape = shape_of("tiny");
  shape.config = small_model();
  shape.rows = 2;
  shape.context = shape.options.context = 12;
  CountingSource source(1);
  const HostBatch host = *source.next();
  for (const Pass pass : {Pass::gradients, Pass::losses, Pass::routes}) {
    shape.pass = pass;
    const MemoryPlan plan = plan_training(*planner, shape);
    EXPECT_EQ(plan.bytes_of("gradients") > 0, pass == Pass::gradients);
    EXPECT_EQ(plan.bytes_of("optimizer state"), 0);
    Mixtral::Options options = shape.options;
    options.trainable = pass == Pass::gradients;
    Mixtral model(*backend, shape.config, options);
    nn::initialise(*backend, model.parameters(), {});
    Arena arena(*backend);
    arena.reserve(plan.arena());
    const int64_t reserved = arena.reserved();
    Context ctx(*backend, arena, Dtype::f32);
    Mixtral::RouterReports reports = model.allocate_reports(ctx);
    if (pass == Pass::routes) model.allocate_token_routes(ctx, host.size(), reports);
    const LossTotals totals = LossTotals::allocate(ctx);
    const Batch batch = upload(ctx, host, shape.config.vocab_size, model.context());
    if (pass == Pass::routes) {
      model.forward(ctx, batch, nullptr, nullptr, &reports);
    } else if (pass == Pass::losses) {
      accumulate_losses(ctx, model, batch, {}, 1, totals, &reports);
    } else {
      const Tensor scale = ctx.allocate({1}, ctx.statistics());
      ctx.run(ops::Fill{.x = scale, .value = 1});
      accumulate_gradients(ctx, model, batch, {}, {.label_scale = scale}, totals, &reports);
    }
    EXPECT_EQ(arena.reserved(), reserved) << "the pass needed more than was planned";
    EXPECT_EQ(arena.peak(), plan.arena());
  }
}

TEST(TrainingPlan, OfAPassIsRefusedWithTheFlagsThatItHas) {
  const auto planner = make_planning_backend();
  TrainingShape shape = shape_of("small");
  shape.rows = 64;
  for (const Pass pass : {Pass::gradients, Pass::losses}) {
    shape.pass = pass;
    const MemoryPlan plan = plan_training(*planner, shape);
    EXPECT_NO_THROW(require_memory(*planner, shape, plan, {.available = plan.total()}));
    const int64_t available =
        plan.total() - plan.arena() + plan.arena() / (pass == Pass::gradients ? 100 : 3);
    try {
      require_memory(*planner, shape, plan, {.available = available});
      FAIL() << "accepted with " << available << " of " << plan.total();
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("the model and a batch need"), std::string::npos) << text;
      EXPECT_NE(text.find(pass == Pass::losses ? "under dtype bf16" : "batch-size"),
                std::string::npos)
          << text;
      EXPECT_EQ(text.find("grad-accumulation"), std::string::npos) << text;
      EXPECT_EQ(text.find("optimizer-state"), std::string::npos) << text;
    }
  }
}

TEST(TrainingPlan, OfALongContextCountsItsTableOfAngles) {
  const auto planner = make_planning_backend();
  TrainingShape shape = shape_of("tiny");
  const int64_t usual = plan_training(*planner, shape).bytes_of("weights");
  const int64_t longer = (int64_t{1} << 28) - shape.options.context;
  shape.options.context += longer;  // the table takes 32 GiB, which the plan does not allocate
  EXPECT_EQ(plan_training(*planner, shape).bytes_of("weights") - usual,
            longer * shape.config.head_dim * 4);
}

TEST(TrainingPlan, GrowsWithTheBatchAndShrinksWithTheFlagsThatSaveMemory) {
  const auto planner = make_planning_backend();
  const TrainingShape shape = shape_of("small");
  const int64_t total = plan_training(*planner, shape).total();
  TrainingShape larger = shape, recomputed = shape, partly = shape, narrow = shape;
  larger.rows = 16;
  recomputed.recompute = true;
  partly.recompute = {true, 3};  // of 6 layers
  narrow.optimizer.bf16_state = true;
  EXPECT_GT(plan_training(*planner, larger).total(), total);
  EXPECT_LT(plan_training(*planner, partly).total(), total);
  EXPECT_LT(plan_training(*planner, recomputed).total(), plan_training(*planner, partly).total());
  EXPECT_LT(plan_training(*planner, narrow).total(), total);
}

TEST(TrainingPlan, RefusesWhatCannotFitAndNamesFlagsThatWould) {
  const auto planner = make_planning_backend();
  const TrainingShape shape = shape_of("small");
  const MemoryPlan plan = plan_training(*planner, shape);
  EXPECT_NO_THROW(require_memory(*planner, shape, plan, {.available = plan.total()}));
  struct Case {
    double share;  // of the plan's total that is free
    std::string expected;
  };
  for (const Case& c : {Case{0.95, "recompute"}, Case{0.01, "smaller model"}}) {
    const auto available = static_cast<int64_t>(c.share * static_cast<double>(plan.total()));
    try {
      require_memory(*planner, shape, plan, {.available = available});
      FAIL() << "accepted with " << available << " of " << plan.total();
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(c.expected), std::string::npos) << text;
      EXPECT_NE(text.find("optimizer state"), std::string::npos) << text;
    }
  }
}

TEST(TrainingPlan, OfACardThatIsNotHereIsNearWhatWasMeasuredOnOne) {
  const auto planner = make_planning_gpu(int64_t{80} << 30);
  TrainingShape seed = shape_of("seed");
  seed.context = seed.options.context = 2048;
  seed.options.weights = seed.options.compute = Dtype::bf16;
  TrainingShape tuning = seed;
  tuning.config = builtin_config("8x7b");
  tuning.rows = 4;
  tuning.options.quantization = ops::WeightFormat::nf4;
  tuning.adapter =
      new_adapter({.targets = {"q_proj", "k_proj", "v_proj", "o_proj"}, .rank = 16}, tuning.config);
  struct Case {
    const TrainingShape& shape;
    double peak;  // GiB, by the driver, on an H100 (docs/performance.md)
  };
  TrainingShape layers = seed;
  layers.config = builtin_config("8x7b");
  layers.config.num_layers = 2;
  layers.rows = 4;
  layers.context = layers.options.context = 4096;
  layers.optimizer.bf16_state = true;
  for (const Case& c : {Case{seed, 33.21}, Case{tuning, 70.80}, Case{layers, 52.58}}) {
    const double planned =
        static_cast<double>(plan_training(*planner, c.shape).total()) / (1 << 30);
    EXPECT_NEAR(planned, c.peak, 0.01 * c.peak);
  }
}

TEST(TrainingPlan, CountsWhatAGpuHoldsAlreadyAndItsRoomAsWell) {
  const TrainingShape shape = shape_of("small");
  const int64_t needed = plan_training(*make_planning_gpu(int64_t{80} << 30), shape).total();
  const auto exact = make_planning_gpu(needed), less = make_planning_gpu(needed - 1);
  const MemoryPlan plan = plan_training(*exact, shape);
  EXPECT_EQ(plan.bytes_of("driver and other programs"), exact->memory().opened);
  EXPECT_NO_THROW(require_memory(*exact, shape, plan, exact->memory()));
  EXPECT_THROW(require_memory(*less, shape, plan, less->memory()), Error);
}

}  // namespace
}  // namespace mixtral::testing
