#include "infer/inference_plan.h"

#include <gtest/gtest.h>

#include "backends/registry.h"
#include "model/config.h"
#include "model/kv_cache.h"

namespace mixtral {
namespace {

TEST(InferencePlan, OfThe8x7bModelTouchesNoMemory) {
  const auto planner = make_planning_backend();
  const MemoryPlan plan =
      plan_inference(*planner, {.config = builtin_config("8x7b"),
                                .options = {.weights = Dtype::bf16, .compute = Dtype::bf16},
                                .sequences = 1,
                                .context = 4096});
  EXPECT_NEAR(static_cast<double>(plan.bytes_of("weights")), 93.4e9, 0.1e9);
  // 2 · layers · context · kv heads · width · 2 bytes
  EXPECT_NEAR(static_cast<double>(plan.bytes_of("key-value cache")), 2.0 * 32 * 4096 * 8 * 128 * 2,
              64e6);
}

TEST(InferencePlan, OfALongContextCountsItsAnglesAndItsCache) {
  const auto planner = make_planning_backend();
  InferenceShape shape{.config = builtin_config("tiny"), .context = 1024};
  const MemoryPlan usual = plan_inference(*planner, shape);
  const int64_t longer = (int64_t{1} << 24) - shape.context;
  shape.context += longer;
  const MemoryPlan plan = plan_inference(*planner, shape);
  const ModelConfig& c = shape.config;
  EXPECT_EQ(plan.bytes_of("weights") - usual.bytes_of("weights"), longer * c.head_dim * 4);
  EXPECT_EQ(plan.bytes_of("key-value cache"),
            KvCache::bytes_needed(*planner, c, {.sequences = 1, .context = 1024 + longer}));
  // At least the keys and values themselves, in f32.
  EXPECT_GE(plan.bytes_of("key-value cache"),
            2 * c.num_layers * (1024 + longer) * c.num_kv_heads * c.head_dim * 4);
  EXPECT_EQ(plan.bytes_of("activations and logits"), usual.bytes_of("activations and logits"));
}

TEST(InferencePlan, CountsTheRowsOfDraftTokens) {
  const auto planner = make_planning_backend();
  InferenceShape shape{.config = builtin_config("tiny"), .sequences = 4, .context = 256};
  const MemoryPlan plain = plan_inference(*planner, shape);
  shape.draft_tokens = 8;
  const MemoryPlan plan = plan_inference(*planner, shape);
  // At least their logits, in f32.
  EXPECT_GE(plan.bytes_of("activations and logits") - plain.bytes_of("activations and logits"),
            4 * 8 * shape.config.vocab_size * 4);
  EXPECT_EQ(plan.bytes_of("key-value cache"), plain.bytes_of("key-value cache"));
}

TEST(InferencePlan, TakesAsManyPromptTokensAloneAsFit) {
  constexpr int64_t kGpu = int64_t{139} << 30;
  const auto planner = make_planning_gpu(kGpu);
  const InferenceShape shape{.config = builtin_config("8x7b"),
                             .options = {.weights = Dtype::bf16, .compute = Dtype::bf16},
                             .sequences = 1,
                             .context = 16'384};
  const InferenceShape fits = fit_lone_chunk(*planner, shape, planner->memory());
  EXPECT_EQ(fits.lone_chunk, planner->lone_prompt_tokens());
  EXPECT_EQ(fits.chunk, 0);
  const int64_t all = plan_inference(*planner, fits).total();
  InferenceShape least = shape;
  least.lone_chunk = planner->prompt_tokens();
  const int64_t fewest = plan_inference(*planner, least).total();
  EXPECT_LT(fewest, all);
  // With less memory fewer, but no fewer than in other steps.
  const auto fitting = [&](int64_t limit) {
    Backend::MemoryInfo memory = planner->memory();
    const double share =
        static_cast<double>(memory_limit(memory)) / static_cast<double>(memory.available);
    memory.available = static_cast<int64_t>(static_cast<double>(limit) / share);
    return fit_lone_chunk(*planner, shape, memory).lone_chunk;
  };
  const int64_t fewer = fitting((all + fewest) / 2);
  EXPECT_LT(fewer, planner->lone_prompt_tokens());
  EXPECT_GT(fewer, planner->prompt_tokens());
  EXPECT_EQ(fitting(fewest / 2), planner->prompt_tokens());
}

TEST(InferencePlan, FillsTheMemoryWithSequencesAndTheirCache) {
  const auto planner = make_planning_backend();
  const InferenceShape asked{.config = builtin_config("8x7b"),
                             .options = {.weights = Dtype::bf16, .compute = Dtype::bf16},
                             .sequences = 16'384,
                             .context = 3072,
                             .chunk = 2048};
  const int64_t limit = int64_t{140} << 30;
  constexpr double kHeld = 400;
  const InferenceShape full = fill_memory(*planner, asked, kHeld, limit);
  const int64_t total = plan_inference(*planner, full).total();
  EXPECT_LE(total, limit);
  EXPECT_GT(total, limit - limit / 200);
  EXPECT_NEAR(static_cast<double>(full.cache_tokens) / static_cast<double>(full.sequences), kHeld,
              kHeld / 50);
  // No more sequences than are asked for, and no more cache than they can fill.
  InferenceShape few = asked;
  few.sequences = 8;
  EXPECT_EQ(fill_memory(*planner, few, kHeld, limit).sequences, 8);
  EXPECT_EQ(fill_memory(*planner, few, kHeld, limit).cache_tokens, 8 * 3072);
  // A cache size that the shape gives is kept.
  InferenceShape given = asked;
  given.cache_tokens = 4000;
  EXPECT_EQ(fill_memory(*planner, given, kHeld, limit).sequences, 10);
  EXPECT_EQ(fill_memory(*planner, given, kHeld, limit).cache_tokens, 4000);
  // Where not even the weights fit, one sequence's plan shows it.
  const InferenceShape none = fill_memory(*planner, asked, kHeld, int64_t{1} << 30);
  EXPECT_EQ(none.sequences, 1);
  EXPECT_EQ(none.cache_tokens, 3072);
}

}  // namespace
}  // namespace mixtral
