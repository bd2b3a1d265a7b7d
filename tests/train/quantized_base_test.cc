// Tuning an adapter on a base in few bits: what it learns, and what memory it takes.
#include <gtest/gtest.h>

#include "infer/inference_plan.h"
#include "model/adapter.h"
#include "tests/train/rig.h"
#include "train/adapter_checkpoint.h"
#include "train/training_plan.h"

namespace mixtral {
namespace {

using ops::WeightFormat;

constexpr double kLr = 1e-2;

/// Trains a model of its own weights for some steps and gives its directory.
void save_trained_model(const std::filesystem::path& directory) {
  const auto backend = make_backend("cpu", 1);
  Mixtral model(*backend, testing::small_model(), {.trainable = true});
  nn::initialise(*backend, model.parameters(), {.seed = 5, .deviation = 0.1});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  LanguageModelCriterion criterion(ctx, model, {});
  Optimizer optimizer(*backend, model.store().groups(), {});
  testing::CountingSource source(3);
  for (int step = 0; step < 100; ++step) {
    arena.reset();
    const HostBatch batch = *source.next();
    criterion.begin(ctx, 0);
    criterion.add_gradients(ctx, batch, {batch.label_count(), 1}, 0);
    optimizer.step(ctx, kLr, ctx.allocate({1}, Dtype::f64));
  }
  save_model(*backend, model, directory, Dtype::f32);
}

/// The loss of an adapter's first steps on other data, and of later ones.
std::pair<double, double> tune(const std::filesystem::path& base, const char* device,
                               std::optional<WeightFormat> quantization) {
  const auto backend = make_backend(device, 1);
  const auto model = load_model(*backend, base, {.quantization = quantization});
  Adapter adapter(
      *backend, *model,
      new_adapter({.targets = {"q_proj", "v_proj", "w1", "w2"}, .rank = 4}, model->config()),
      {.trainable = true, .seed = 2});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  LanguageModelCriterion criterion(ctx, *model, {});
  Optimizer optimizer(*backend, adapter.store().groups(), {.weight_decay = 0});
  testing::CountingSource source(8);
  constexpr int kSteps = 60, kCounted = 10;
  double first = 0, last = 0;
  for (int step = 0; step < kSteps; ++step) {
    arena.reset();
    HostBatch batch = *source.next();
    // Another task than the base's: labels two tokens on.
    for (size_t i = 0; i < batch.labels.size(); ++i)
      if (batch.labels[i] >= 0) batch.labels[i] = (batch.labels[i] + 2) % 32;
    const StepSize size{batch.label_count(), 1};
    criterion.begin(ctx, 0);
    criterion.add_gradients(ctx, batch, size, 0);
    const double loss = criterion.read(ctx, 0, size).loss;
    if (step < kCounted) first += loss / kCounted;
    if (step >= kSteps - kCounted) last += loss / kCounted;
    optimizer.step(ctx, kLr, ctx.allocate({1}, Dtype::f64));
  }
  return {first, last};
}

TEST(QuantizedBaseTraining, LearnsNearlyWhatItDoesOnTheWholeBase) {
  const testing::Scratch scratch;
  save_trained_model(scratch.path());
  const auto [first, last] = tune(scratch.path(), "cpu", std::nullopt);
  EXPECT_LT(last, first - 1) << "there must be something to learn";
  for (const char* device : {"cpu", "cuda"}) {
    if (std::string(device) == "cuda" && make_backend("auto")->name() == "cpu") continue;
    const double fp8 = tune(scratch.path(), device, WeightFormat::fp8).second;
    const double nf4 = tune(scratch.path(), device, WeightFormat::nf4).second;
    EXPECT_NEAR(fp8, last, 0.1 * (first - last)) << device;
    EXPECT_NEAR(nf4, last, 0.2 * (first - last)) << device;
  }
}

TrainingShape shape_of(const ModelConfig& config, const AdapterSpec& spec, int64_t context) {
  TrainingShape shape;
  shape.config = config;
  shape.rows = 2;
  shape.context = shape.options.context = context;
  shape.adapter = new_adapter(spec, config);
  return shape;
}

TEST(QuantizedBaseTraining, TakesWhatWasPlanned) {
  const auto planner = make_planning_backend();
  for (const auto quantization : {WeightFormat::fp8, WeightFormat::nf4}) {
    TrainingShape shape =
        shape_of(testing::small_model(), {.targets = {"q_proj", "w2"}, .rank = 2}, 12);
    shape.options.quantization = quantization;
    const MemoryPlan plan = plan_training(*planner, shape);
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, shape.config, shape.options);
    nn::initialise(*backend, model.parameters(), {});
    const Adapter adapter(*backend, model, *shape.adapter, {.trainable = true});
    Arena arena(*backend);
    Context ctx(*backend, arena, Dtype::f32);
    LanguageModelCriterion criterion(ctx, model, {});
    const HostBatch batch = *testing::CountingSource(1).next();
    // Twice: the blocks of the first, growing arena have unused ends.
    for (int pass = 0; pass < 2; ++pass) {
      arena.reset();
      criterion.begin(ctx, 0);
      criterion.add_gradients(ctx, batch, {batch.label_count(), 1}, 0);
    }
    EXPECT_LE(arena.peak(), plan.bytes_of("activations") + plan.bytes_of("logits, a slice"));
    EXPECT_GE(plan.bytes_of("weights"), model.store().value_bytes());
  }
}

TEST(QuantizedBaseTraining, TheBaseOf8x7bTakesAByteOrAHalfAParameter) {
  const auto planner = make_planning_backend();
  TrainingShape shape = shape_of(builtin_config("8x7b"), {.targets = {"q_proj"}, .rank = 16}, 512);
  shape.recompute = true;
  shape.options.weights = shape.options.compute = Dtype::bf16;
  const MemoryPlan whole = plan_training(*planner, shape);
  shape.options.quantization = WeightFormat::fp8;
  const MemoryPlan fp8 = plan_training(*planner, shape);
  shape.options.quantization = WeightFormat::nf4;
  const MemoryPlan nf4 = plan_training(*planner, shape);
  EXPECT_NEAR(static_cast<double>(whole.bytes_of("weights")), 93.4e9, 0.1e9);
  // 46.44e9 of 46.70e9 parameters: 8 + 32 / 128 and 4 + 32 / 64 bits each; the rest in 16.
  EXPECT_NEAR(static_cast<double>(fp8.bytes_of("weights")), 46.44e9 * 8.25 / 8 + 0.53e9, 0.1e9);
  EXPECT_NEAR(static_cast<double>(nf4.bytes_of("weights")), 46.44e9 * 4.5 / 8 + 0.53e9, 0.1e9);
  EXPECT_LT(fp8.total(), int64_t{79} << 30);
}

TEST(QuantizedBaseTraining, IsWhatARefusalProposesWhereTheWeightsAreTooLarge) {
  const auto planner = make_planning_backend();
  const TrainingShape shape =
      shape_of(builtin_config("seed"), {.targets = {"q_proj"}, .rank = 4}, 64);
  const MemoryPlan plan = plan_training(*planner, shape);
  const auto refusal = [&](double share) -> std::string {
    const auto available =
        static_cast<int64_t>(share * static_cast<double>(plan.bytes_of("weights")));
    try {
      require_memory(*planner, shape, plan, {.available = available});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const std::string fp8 = refusal(0.9), nf4 = refusal(0.35);
  EXPECT_NE(fp8.find("under quantize-base fp8\n"), std::string::npos) << fp8;
  EXPECT_NE(nf4.find("quantize-base nf4"), std::string::npos) << nf4;
}

TEST(QuantizedBaseInference, IsWhatARefusalProposesWhereTheWeightsAreTooLarge) {
  const auto planner = make_planning_backend();
  const InferenceShape shape{.config = builtin_config("seed"), .context = 256};
  const int64_t weights = plan_inference(*planner, shape).bytes_of("weights");  // in f32
  const auto refusal = [&](double share) -> std::string {
    const auto available = static_cast<int64_t>(share * static_cast<double>(weights));
    try {
      require_memory(*planner, shape, {.available = available});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_NE(refusal(0.7).find("under dtype bf16\n"), std::string::npos) << refusal(0.7);
  EXPECT_NE(refusal(0.4).find("under dtype bf16 quantize-base fp8\n"), std::string::npos)
      << refusal(0.4);
  EXPECT_NE(refusal(0.25).find("quantize-base nf4\n"), std::string::npos) << refusal(0.25);
}

}  // namespace
}  // namespace mixtral
