// Adapters in GGUF files and in Mistral's directories.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "model/adapter_file.h"
#include "tests/support/files.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/models.h"
#include "tests/support/safetensors_builder.h"

namespace mixtral {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::SafetensorsBuilder;

// Heads of width 4: of the file's rows 0 1 2 3, the model's are 0 2 1 3.
const ModelConfig kModel = testing::uneven_config();
constexpr uint64_t kRank = 2;

std::vector<float> counted(uint64_t count, float start = 1) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), start);
  return values;
}

GgufBuilder gguf(float alpha) {
  GgufBuilder b;
  b.key("general.architecture", "llama")
      .key("general.type", "adapter")
      .key("adapter.type", "lora")
      .key("adapter.lora.alpha", alpha);
  return b;
}

/// B's rows, of `rank` numbers each, in another order.
std::vector<float> rows(const std::vector<float>& b, const std::vector<size_t>& order) {
  std::vector<float> result;
  for (const size_t row : order)
    for (size_t i = 0; i < kRank; ++i) result.push_back(b[row * kRank + i]);
  return result;
}

TEST(GgufAdapter, IsReadWithItsRowsInTheModelsOrder) {
  const TemporaryDirectory directory;
  const auto d = static_cast<uint64_t>(kModel.hidden_size),
             f = static_cast<uint64_t>(kModel.intermediate_size),
             e = static_cast<uint64_t>(kModel.num_experts);
  const auto a = counted(kRank * d), b = counted(8 * kRank, 100);
  const auto experts_a = counted(e * kRank * d, 200), experts_b = counted(e * f * kRank, 500);
  GgufBuilder file = gguf(6);
  file.tensor("blk.1.attn_q.weight.lora_a", {kRank, d}, a)
      .tensor("blk.1.attn_q.weight.lora_b", {8, kRank}, b)
      .tensor("blk.0.ffn_up_exps.weight.lora_a", {e, kRank, d}, experts_a)
      .tensor("blk.0.ffn_up_exps.weight.lora_b", {e, f, kRank}, experts_b);
  const AdapterFile adapter = AdapterFile::load(file.write(directory.path() / "a.gguf"), kModel);
  ASSERT_EQ(adapter.modules.size(), 2u);
  const AdapterModule &w3 = adapter.modules[0], &q = adapter.modules[1];
  EXPECT_EQ(w3.target, "w3");
  EXPECT_EQ(w3.experts.size(), e);
  EXPECT_EQ(w3.a, experts_a);
  EXPECT_EQ(w3.b, experts_b);
  EXPECT_EQ(q.target, "q_proj");
  EXPECT_EQ(q.layer, 1);
  EXPECT_EQ(q.rank, 2);
  EXPECT_EQ(q.scale, 3);
  EXPECT_EQ(q.a, a);
  EXPECT_EQ(q.b, rows(b, {0, 2, 1, 3, 4, 6, 5, 7}));
}

TEST(GgufAdapter, IsRefusedWhereItDoesNotFit) {
  const TemporaryDirectory directory;
  const auto problem = [&](const GgufBuilder& file) {
    const auto path = file.write(directory.path() / "a.gguf");
    return message_of([&] { AdapterFile::load(path, kModel); });
  };
  const std::vector<float> values(16);
  EXPECT_THAT(problem(gguf(1).tensor("blk.0.attn_z.weight.lora_a", {2, 8}, values)),
              HasSubstr("attn_z.weight.lora_a matches nothing"));
  EXPECT_THAT(problem(gguf(1).tensor("blk.0.attn_q.weight", {2, 8}, values)),
              HasSubstr("matches nothing"));
  EXPECT_THAT(problem(gguf(1).tensor("blk.0.attn_q.weight.lora_a", {2, 8}, values)),
              HasSubstr("has lora_A but no lora_B"));
  EXPECT_THAT(problem(gguf(1).tensor("blk.0.attn_q.weight.lora_a", {4, 4}, values)),
              HasSubstr("[4, 8]"));
  EXPECT_THAT(problem(gguf(1).tensor("blk.7.attn_q.weight.lora_a", {2, 8}, values)),
              HasSubstr("larger model"));
  GgufBuilder model;
  model.key("general.type", "model");
  EXPECT_THAT(problem(model), HasSubstr("general.type"));
  GgufBuilder without;
  without.key("general.architecture", "llama")
      .key("general.type", "adapter")
      .key("adapter.type", "lora");
  EXPECT_THAT(problem(without), HasSubstr("adapter.lora.alpha"));
}

TEST(MistralAdapter, HasAScalingInsteadOfAnAlpha) {
  const TemporaryDirectory directory;
  const auto a = counted(kRank * 8), b = counted(4 * kRank, 100);
  SafetensorsBuilder()
      .add("layers.0.attention.wk.lora_A.weight", "F32", {2, 8}, a)
      .add("layers.0.attention.wk.lora_B.weight", "F32", {4, 2}, b)
      .add("layers.1.feed_forward.experts.2.w1.lora_A.weight", "F32", {2, 8}, a)
      .add("layers.1.feed_forward.experts.2.w1.lora_B.weight", "F32", {6, 2}, counted(12))
      .write(directory.path() / "lora.safetensors");
  const auto load = [&] { return AdapterFile::load(directory.path(), kModel); };
  const AdapterFile adapter = load();
  ASSERT_EQ(adapter.modules.size(), 2u);
  EXPECT_EQ(adapter.modules[0].target, "k_proj");
  EXPECT_EQ(adapter.modules[0].scale, 2);
  EXPECT_EQ(adapter.modules[0].b, rows(b, {0, 2, 1, 3}));
  EXPECT_EQ(adapter.modules[1].experts, std::vector<int64_t>{2});
  write_file(directory.path() / "params.json", R"({"lora":{"rank":2,"scaling":5}})");
  EXPECT_EQ(load().modules[0].scale, 5);
}

}  // namespace
}  // namespace mixtral
