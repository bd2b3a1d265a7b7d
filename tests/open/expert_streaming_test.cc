#include "open/expert_streaming.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "tests/support/files.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// A model whose weights are mostly experts.
ModelConfig wide_config() {
  ModelConfig config;
  config.vocab_size = 32;
  config.hidden_size = 64;
  config.intermediate_size = 2048;
  config.num_layers = 4;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.num_experts = 8;
  config.max_positions = 64;
  return config;
}

class ExpertStreamingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::Weights zeros;  // nobody looks at the numbers
    for_each_tensor(wide_config(), [&](const TensorId& id) {
      zeros[tensor_name(id)].resize(
          static_cast<size_t>(tensor_shape(wide_config(), id.kind).numel()));
    });
    testing::write_mixtral(directory_.path(), wide_config(), std::move(zeros));
  }

  int64_t total(const std::optional<ExpertStreaming>& streaming) const {
    InferenceShape shape = shape_;
    shape.options.stream_experts = streaming.has_value();
    if (streaming) shape.expert_memory = streaming->memory;
    return plan_inference(*make_planning_backend(backend_.get()), shape).total();
  }
  std::optional<ExpertStreaming> find(int64_t available) const {
    return find_streaming(*backend_, {.model = source()}, shape_,
                          {.total = available, .available = available});
  }
  ModelSource source() const { return ModelSource::resolve({.model = directory_.path().string()}); }

  const TemporaryDirectory directory_;
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", 1);
  const InferenceShape shape_{.config = wide_config(), .options = {}, .context = 64};
};

TEST_F(ExpertStreamingTest, KeepsAsManyExpertsAsFit) {
  const int64_t whole = total({});
  EXPECT_FALSE(find(whole).has_value());
  const int64_t limit = whole - (int64_t{25} << 20);
  const auto streaming = find(limit);
  ASSERT_TRUE(streaming.has_value());
  const int64_t expert = streaming->sizes.expert_bytes();
  EXPECT_EQ(expert, 3 * 64 * 2048 * 4);
  EXPECT_EQ(streaming->memory % expert, 0);
  EXPECT_EQ(streaming->whole, whole);
  EXPECT_LE(total(streaming), limit - limit / 32);
  EXPECT_GT(total(streaming), limit - limit / 32 - expert);
  EXPECT_THAT(describe(*streaming), HasSubstr("of 32 are in memory at once"));
  // Not even one expert of each layer.
  EXPECT_FALSE(find(whole - 31 * expert).has_value());
}

TEST_F(ExpertStreamingTest, OfAGpuNeedsRoomForAllExpertsInTheHostsMemory) {
  const auto gpu = make_planning_gpu(int64_t{80} << 30);
  const int64_t whole = plan_inference(*gpu, shape_).total();
  const auto memory = [](int64_t bytes) {
    return Backend::MemoryInfo{.total = bytes, .available = bytes};
  };
  const int64_t less = whole - (int64_t{10} << 20);
  const auto found = [&](int64_t host) {
    return find_streaming(*gpu, {.model = source(), .host_memory = host}, shape_, memory(less));
  };
  const int64_t all = int64_t{32} * 3 * 64 * 2048 * 4;
  EXPECT_FALSE(found(all).has_value());
  const auto streaming = found(all + all / 16);
  ASSERT_TRUE(streaming.has_value());
  EXPECT_TRUE(streaming->in_host);
  EXPECT_EQ(streaming->sizes.all_bytes(), all);
  InferenceShape shape = shape_;
  shape.options.stream_experts = true;
  shape.expert_memory = streaming->memory;
  const MemoryPlan plan = plan_inference(*gpu, shape);
  EXPECT_LE(plan.total(), less - less / 32);
  EXPECT_EQ(plan.bytes_of("experts on the device"), streaming->memory);
  EXPECT_EQ(plan.bytes_of("experts in host memory"), all);
  EXPECT_THAT(plan.table(), AllOf(HasSubstr("experts on the device"),
                                  HasSubstr("experts in host memory"), HasSubstr("48.0 MiB")));
  EXPECT_THAT(describe(*streaming), HasSubstr("stand in the host's memory (48.0 MiB)"));
  // Quantized when they are loaded, or drawn: all the same.
  InferenceShape packed = shape_;
  packed.options.quantization = ops::WeightFormat::nf4;
  const ModelSource builtin = ModelSource::resolve({.model = "tiny"});
  EXPECT_TRUE(plan_streaming(*gpu, {.model = builtin, .drawn = true, .host_memory = all}, packed,
                             memory(whole), all)
                  .has_value());
  const auto refused = [&](int64_t host, int64_t asked) {
    return message_of([&] {
      plan_streaming(*gpu, {.model = source(), .host_memory = host}, shape_, memory(whole), asked);
    });
  };
  EXPECT_THAT(refused(all, all), AllOf(HasSubstr("expert-memory"), HasSubstr("take 48.0 MiB"),
                                       HasSubstr("46.5 MiB that are free")));
  EXPECT_THAT(refused(2 * all, all / 8 - 1), HasSubstr("one of the 8 experts of each layer"));
}

TEST_F(ExpertStreamingTest, IsForCpusAndFilesWithTheWeightsAsTheyAreKept) {
  const int64_t whole = total({});
  const Backend::MemoryInfo memory{.total = whole, .available = whole - (int64_t{25} << 20)};
  const auto reference = make_backend("ref");
  EXPECT_FALSE(find_streaming(*reference, {.model = source()}, shape_, memory).has_value());
  InferenceShape packed = shape_;
  packed.options.quantization = ops::WeightFormat::nf4;
  EXPECT_THAT(message_of([&] {
                plan_streaming(*backend_, {.model = source()}, packed, memory, int64_t{1} << 30);
              }),
              HasSubstr("in the formats that they have there"));
  const ModelSource builtin = ModelSource::resolve({.model = "tiny"});
  EXPECT_THAT(message_of([&] {
                plan_streaming(*backend_, {.model = builtin}, shape_, memory, int64_t{1} << 30);
              }),
              HasSubstr("leave it out"));
}

}  // namespace
}  // namespace mixtral
