#include "open/expert_streaming.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "tests/support/files.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

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
    return find_streaming(*backend_, source(), shape_,
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

TEST_F(ExpertStreamingTest, IsForCpusAndFilesWithTheWeightsAsTheyAreKept) {
  const int64_t whole = total({});
  const Backend::MemoryInfo memory{.total = whole, .available = whole - (int64_t{25} << 20)};
  const auto reference = make_backend("ref");
  EXPECT_FALSE(find_streaming(*reference, source(), shape_, memory).has_value());
  InferenceShape packed = shape_;
  packed.options.quantization = ops::WeightFormat::nf4;
  EXPECT_THAT(
      message_of([&] { plan_streaming(*backend_, source(), packed, memory, int64_t{1} << 30); }),
      HasSubstr("in the formats that they have there"));
  const ModelSource builtin = ModelSource::resolve({.model = "tiny"});
  EXPECT_THAT(
      message_of([&] { plan_streaming(*backend_, builtin, shape_, memory, int64_t{1} << 30); }),
      HasSubstr("leave it out"));
}

}  // namespace
}  // namespace mixtral
