// The mixes are llama.cpp's: rows of its table, for a model of Mixtral's shape.
#include "convert/stored_type.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace mixtral {
namespace {

using enum TensorKind;

struct Row {
  const char* choice;
  TensorKind kind;
  int64_t layer;
  const char* type;
};

constexpr Row kMixtral[] = {{"q4_k_m", query, 5, "q4_k"},
                            {"q4_k_m", key, 5, "q8_0"},
                            {"q4_k_m", value, 5, "q8_0"},
                            {"q4_k_m", attention_output, 5, "q5_k"},
                            {"q4_k_m", w1, 5, "q4_k"},
                            {"q4_k_m", w3, 31, "q4_k"},
                            {"q4_k_m", w2, 0, "q6_k"},
                            {"q4_k_m", w2, 3, "q6_k"},
                            {"q4_k_m", w2, 4, "q4_k"},
                            {"q4_k_m", w2, 6, "q6_k"},
                            {"q4_k_m", w2, 7, "q4_k"},
                            {"q4_k_m", w2, 28, "q6_k"},
                            {"q4_k_m", head, -1, "q6_k"},
                            {"q4_k_m", embedding, -1, "q4_k"},
                            {"q4_k_m", router, 5, "f32"},
                            {"q4_k_m", final_norm, -1, "f32"},
                            {"q4_k_s", w2, 0, "q5_k"},
                            {"q4_k_s", w2, 6, "q4_k"},
                            {"q5_k_m", attention_output, 5, "q5_k"},
                            {"q5_k_m", w2, 6, "q6_k"},
                            {"q5_k_m", w1, 6, "q5_k"},
                            {"q6_k", w2, 5, "q6_k"},
                            {"q8_0", head, -1, "q8_0"},
                            {"q8_0", w1, 5, "q8_0"},
                            {"q4_0", head, -1, "q6_k"},
                            {"q4_0", key, 5, "q8_0"},
                            {"q4_0", w2, 0, "q4_0"},
                            {"f16", w2, 0, "f16"},
                            {"f16", attention_norm, 0, "f32"}};

StoredType type_of(const Row& row, const ModelConfig& config, ModelFormat target) {
  return TypeChoice(row.choice, target, 64)
      .of(row.kind, row.layer, config, target, {ops::WeightFormat::bf16});
}

TEST(StoredType, MixesOfAMixtralAreThoseOfLlamaCpp) {
  const ModelConfig config = builtin_config("8x7b");
  for (const Row& row : kMixtral)
    EXPECT_EQ(type_of(row, config, ModelFormat::gguf).name(), row.type)
        << row.choice << " kind " << static_cast<int>(row.kind) << " layer " << row.layer;
}

TEST(StoredType, OtherNumbersOfExpertsAndTiedHeadsHaveTheirOwnRules) {
  ModelConfig config = builtin_config("8x7b");
  config.num_experts = 4;
  EXPECT_EQ(type_of({"q4_k_m", value, 0, ""}, config, ModelFormat::gguf).name(), "q6_k");
  EXPECT_EQ(type_of({"q4_k_m", value, 4, ""}, config, ModelFormat::gguf).name(), "q4_k");
  EXPECT_EQ(type_of({"q4_k_m", attention_output, 4, ""}, config, ModelFormat::gguf).name(), "q4_k");
  EXPECT_EQ(type_of({"q4_0", key, 4, ""}, config, ModelFormat::gguf).name(), "q4_0");
  config.tie_embeddings = true;
  EXPECT_EQ(type_of({"q4_k_m", embedding, -1, ""}, config, ModelFormat::gguf).name(), "q6_k");
}

TEST(StoredType, RowsThatAreNotWholeBlocksFallBack) {
  ModelConfig config = builtin_config("8x7b");
  config.hidden_size = 4096 + 32;
  EXPECT_EQ(type_of({"q4_k_m", w1, 4, ""}, config, ModelFormat::gguf).name(), "q5_0");
  EXPECT_EQ(type_of({"q5_k_m", w1, 4, ""}, config, ModelFormat::gguf).name(), "q5_1");
  EXPECT_EQ(type_of({"q6_k", w1, 4, ""}, config, ModelFormat::gguf).name(), "q8_0");
  EXPECT_EQ(type_of({"q4_k_m", head, -1, ""}, config, ModelFormat::gguf).name(), "q8_0");
  config.hidden_size = 4096 + 8;
  EXPECT_EQ(type_of({"q8_0", w1, 4, ""}, config, ModelFormat::gguf).name(), "f16");
}

TEST(StoredType, WithoutAChoiceTypesStayAndWhatDiffersWithinAStackIsWidened) {
  const ModelConfig config = builtin_config("8x7b");
  using ops::WeightFormat;
  const auto kept = [&](ModelFormat target,
                        const std::vector<std::optional<WeightFormat>>& sources) {
    return TypeChoice().of(w1, 0, config, target, sources).name();
  };
  EXPECT_EQ(kept(ModelFormat::gguf, {WeightFormat::bf16, WeightFormat::bf16}), "bf16");
  EXPECT_EQ(kept(ModelFormat::gguf, {WeightFormat::bf16, WeightFormat::f16}), "f32");
  EXPECT_EQ(kept(ModelFormat::gguf, {WeightFormat::q4_k}), "q4_k");
  EXPECT_EQ(kept(ModelFormat::hugging_face, {WeightFormat::q4_k}), "f32");
  EXPECT_EQ(kept(ModelFormat::mlx, {std::nullopt}), "f32");
}

TEST(StoredType, WhatATargetCannotHoldIsAnErrorThatListsWhatItCan) {
  EXPECT_THAT(message_of([] { TypeChoice("q4_k_m", ModelFormat::hugging_face, 64); }),
              ::testing::AllOf(::testing::HasSubstr("q4_k_m"), ::testing::HasSubstr("bf16")));
  EXPECT_THAT(message_of([] { TypeChoice("int4", ModelFormat::gguf, 64); }),
              ::testing::HasSubstr("q8_0"));
  EXPECT_THAT(message_of([] { TypeChoice("int4", ModelFormat::mlx, 48); }),
              ::testing::HasSubstr("48"));
}

}  // namespace
}  // namespace mixtral
