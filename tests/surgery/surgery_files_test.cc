// Models of several others, what receipts account for, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "convert/verify_conversion.h"
#include "tests/surgery/surgery_rig.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;

TEST_F(Surgery, AGraftOfABaseWithItselfIsItsUpcycle) {
  const ModelConfig config = config_of(1, 1);
  testing::write_dense(path("dense"), config, testing::draw_model(config, 11));
  const ModelSource dense = open("dense", true);
  write(plan_graft(dense, {&dense, &dense}, {.per_token = 2, .seed = 5, .prompts = {}}), "graft");
  write(plan_upcycle(dense, 2, 2, {.seed = 5}), "upcycled");
  EXPECT_EQ(bytes_of(path("graft")), bytes_of(path("upcycled")));
}

TEST_F(Surgery, GraftTakesExpertsFromTheModelsAndTheRestFromTheBase) {
  const ModelConfig config = config_of(1, 1);
  for (const uint64_t seed : {12, 13, 14})
    testing::write_dense(path("d" + std::to_string(seed)), config,
                         testing::draw_model(config, seed));
  const ModelSource base = open("d12", true), a = open("d13", true), b = open("d14", true);
  HostBatch prompts[2];
  prompts[0].append(std::vector<int32_t>{1, 2, 3, 4});
  prompts[0].append(std::vector<int32_t>{5, 6});
  prompts[1].append(std::vector<int32_t>{20, 21, 22});
  GraftOptions options{.per_token = 1, .prompts = {}};
  for (const HostBatch& own : prompts)
    options.prompts.push_back(mean_router_inputs(*backend_, base, own));
  write(plan_graft(base, {&a, &b}, options), "out");
  EXPECT_EQ(values_of(path("out"), expert_name(1, 1)),
            values_of(path("d14"), "model.layers.1.mlp.gate_proj.weight"));
  const char* attention = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_EQ(values_of(path("out"), attention), values_of(path("d12"), attention));
  const auto router = values_of(path("out"), router_name(1));
  for (size_t e = 0; e < 2; ++e) {
    double square = 0;
    for (size_t i = 0; i < 16; ++i) square += std::pow(router[e * 16 + i], 2);
    EXPECT_NEAR(square, 1, 1e-5);
  }
  // The base's attention sends a prompt's tokens, on average, to the expert that it is for.
  const ModelSource written = open("out");
  for (size_t own = 0; own < 2; ++own) {
    const auto load = gather_statistics(*backend_, written, prompts[own], {}).layers.front().load;
    EXPECT_GT(load[own], load[1 - own]);
  }
  const Verification verified = verify_conversion(path("out"), 1);
  EXPECT_THAT(verified.problems, IsEmpty());
  EXPECT_TRUE(verified.source_present);
  EXPECT_EQ(verified.receipt.edit.sources.size(), 3u);
  EXPECT_THAT(verified.receipt.edit.sources[2].dropped,
              IsSupersetOf({std::string(attention), std::string("lm_head.weight")}));
}

TEST_F(Surgery, GraftedMixtralsBringTheirRouters) {
  const ModelConfig config = config_of(3, 2);
  testing::write_mixtral(path("a"), config, testing::draw_model(config, 15));
  testing::write_mixtral(path("b"), config, testing::draw_model(config, 16));
  const ModelSource a = open("a"), b = open("b");
  write(plan_graft(a, {&a, &b}, {.per_token = 2, .prompts = {}}), "out");
  auto rows = values_of(path("a"), router_name(0));
  const auto more = values_of(path("b"), router_name(0));
  rows.insert(rows.end(), more.begin(), more.end());
  EXPECT_EQ(values_of(path("out"), router_name(0)), rows);
  EXPECT_EQ(values_of(path("out"), expert_name(0, 4)), values_of(path("b"), expert_name(0, 1)));
}

TEST_F(Surgery, ReceiptsAccountForEveryTensorOfSourceAndResult) {
  const ModelConfig config = config_of(4, 2);
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 17));
  const ModelSource source = open("model");
  write(plan_prune(source, statistics(source), 2, PruneBy::reap), "out", "bf16");
  const Verification fresh = verify_conversion(path("out"), 1);
  EXPECT_THAT(fresh.problems, IsEmpty());
  std::set<std::string> accounted(fresh.receipt.edit.sources.front().dropped.begin(),
                                  fresh.receipt.edit.sources.front().dropped.end());
  for (const ReceiptTensor& tensor : fresh.receipt.tensors) accounted.insert(tensor.source);
  const std::vector<std::string>& names = source.tensors().names();
  EXPECT_EQ(accounted, std::set<std::string>(names.begin(), names.end()));
  // Another source, and a damaged result, are noticed.
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 18));
  EXPECT_THAT(verify_conversion(path("out"), 1).problems, Contains(HasSubstr("has changed")));
  fs::remove_all(path("model"));
  EXPECT_THAT(verify_conversion(path("out"), 1).problems, IsEmpty());
  std::fstream damage(path("out") / "model.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
  damage.seekp(-3, std::ios::end);
  damage.put('\x42');
  damage.close();
  EXPECT_FALSE(verify_conversion(path("out"), 1).problems.empty());
}

TEST_F(Surgery, ReadsQuantizedModelsOfOtherForms) {
  ModelConfig config = config_of(4, 2);
  config.hidden_size = config.intermediate_size = 32;
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 19));
  convert_model(open("model"), {.to = ModelFormat::gguf,
                                .type = TypeChoice("q8_0", ModelFormat::gguf, 64),
                                .out = path("m.gguf"),
                                .threads = 1});
  const ModelSource source = open("m.gguf");
  const SurgeryResult made =
      write(plan_prune(source, statistics(source), 3, PruneBy::load), "out", "f16");
  EXPECT_EQ(made.receipt.source_format, "gguf");
  EXPECT_THAT(verify_conversion(path("out"), 1).problems, IsEmpty());
  EXPECT_TRUE(std::isfinite(made.quality->after));
  const auto query = std::ranges::find(
      made.receipt.tensors, "model.layers.0.self_attn.q_proj.weight", &ReceiptTensor::model);
  ASSERT_NE(query, made.receipt.tensors.end());
  EXPECT_EQ(query->source, "blk.0.attn_q.weight");
  EXPECT_THAT(query->transform, HasSubstr("rotary pairs half a head apart"));
}

TEST_F(Surgery, WhatAMixtralCannotSayIsRefusedByName) {
  const ModelConfig config = config_of(1, 1);
  const testing::Weights weights = testing::draw_model(config, 20);
  const auto refusal = [&](const std::string& more, const std::string& type = "llama") {
    testing::write_dense(path("dense"), config, weights, type, more);
    return message_of([&] { open("dense", true); });
  };
  EXPECT_THAT(refusal("\"attention_bias\": true,\n"), HasSubstr("attention_bias"));
  EXPECT_THAT(refusal("\"mlp_bias\": true,\n"), HasSubstr("mlp_bias"));
  EXPECT_THAT(refusal("\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8},\n"),
              HasSubstr("llama3"));
  EXPECT_THAT(refusal("", "qwen2"), HasSubstr("qwen2"));
  testing::write_dense(path("dense"), config, weights);
  std::string text = read_file(path("dense") / "config.json");
  text.replace(text.find("silu"), 4, "gelu");
  write_file(path("dense") / "config.json", text);
  EXPECT_THAT(message_of([&] { open("dense", true); }), HasSubstr("hidden_act"));
  // A bias that config.json does not speak of.
  testing::write_dense(path("dense"), config, weights);
  const ModelTensors tensors(path("dense"));
  std::map<std::string, Tensor> more;
  for (const std::string& name : tensors.names()) more[name] = tensors.view(name);
  std::vector<float> bias(16);
  more["model.layers.0.self_attn.q_proj.bias"] = Tensor(bias.data(), {16}, Dtype::f32);
  fs::create_directories(path("biased"));
  write_safetensors(path("biased") / "model.safetensors", more);
  fs::copy_file(path("dense") / "config.json", path("biased") / "config.json");
  const ModelSource biased = open("biased", true);
  EXPECT_THAT(message_of([&] { write(plan_upcycle(biased, 2, 1, {}), "out"); }),
              HasSubstr("q_proj.bias"));
  EXPECT_FALSE(fs::exists(path("out")));
}

TEST_F(Surgery, ImpossibleCountsAndShapesAreRefused) {
  const ModelConfig config = config_of(3, 2);
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 21));
  const ModelSource source = open("model");
  const ExpertStatistics scores = statistics(source, 4);
  EXPECT_THROW(plan_prune(source, scores, 3, PruneBy::load), UsageError);
  EXPECT_THROW(plan_prune(source, scores, 0, PruneBy::load), UsageError);
  EXPECT_THROW(plan_merge(source, scores, 3), UsageError);
  EXPECT_THROW(plan_add(source, 0, {}, {}), UsageError);
  EXPECT_THROW(plan_add(source, 1, {3}, {}), UsageError);
  EXPECT_THAT(message_of([&] { plan_upcycle(source, 4, 2, {}); }), HasSubstr("already"));
  ModelConfig wide = config_of(1, 1);
  wide.intermediate_size = 8;
  testing::write_dense(path("wide"), wide, testing::draw_model(wide, 22));
  const ModelSource other = open("wide", true);
  EXPECT_THAT(message_of([&] { plan_graft(source, {&source, &other}, {.prompts = {}}); }),
              HasSubstr("intermediate_size"));
}

TEST_F(Surgery, ATiedHeadStaysTied) {
  ModelConfig config = config_of(1, 1);
  config.tie_embeddings = true;
  testing::write_dense(path("dense"), config, testing::draw_model(config, 23));
  const ModelSource dense = open("dense", true);
  write(plan_upcycle(dense, 2, 1, {}), "out");
  EXPECT_TRUE(open("out").config().tie_embeddings);
  EXPECT_EQ(bytes_of(path("out")).count("lm_head.weight"), 0u);
  EXPECT_LE(difference(logits(dense), logits(open("out"))), 2e-6);
}

}  // namespace
}  // namespace mixtral
