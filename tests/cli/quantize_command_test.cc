// quantize for a text, and within budgets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "base/file.h"
#include "io/json.h"
#include "model/checkpoint.h"
#include "model/mixtral.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class QuantizeCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelConfig config = testing::minimal_config();
    config.hidden_size = config.intermediate_size = 64;
    config.head_dim = 32;
    config.num_experts = 6;
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(), {.seed = 4, .deviation = 0.2});
    fs::create_directories(path("model"));
    save_model(*backend, model, path("model"), Dtype::f32);
    std::string rows;
    for (int row = 0; row < 12; ++row) {
      rows += "{\"input_ids\": [1";
      for (int i = 1; i < 32; ++i) rows += ", " + std::to_string((i * i + 5 * row) % 32);
      rows += "]}\n";
    }
    write_file(path("rows.jsonl"), rows);
  }

  std::string path(const std::string& name) { return (directory_.path() / name).string(); }
  Outcome quantize(std::vector<std::string> more) {
    more.insert(more.begin(),
                {"quantize", "--model", path("model"), "--group-size", "32", "--context", "32",
                 "--tokens", "384", "--json", "--out", path("q"), "--overwrite", "--threads", "1"});
    return run_command(more);
  }
  Json quantized(const std::vector<std::string>& more) {
    const Outcome made = quantize(more);
    EXPECT_EQ(made.code, 0) << made.err;
    return Json::parse(made.out, "out");
  }
  static double divergence(const Json& json) {
    return json.at("quality").at("kl_divergence").as_double();
  }

 private:
  TemporaryDirectory directory_;
};

TEST_F(QuantizeCommand, RoundingForATextLosesLessOnIt) {
  const std::string rows = path("rows.jsonl");
  const Json nearest = quantized({"--type", "int4", "--data", rows});
  const Json rounded = quantized({"--type", "int4", "--calibrate", rows});
  EXPECT_LT(divergence(rounded), 0.8 * divergence(nearest));
  EXPECT_GT(rounded.at("mean_loss").as_double(), 0);
  EXPECT_EQ(rounded.at("calibration_tokens").as_int(), 384);
}

TEST_F(QuantizeCommand, ABudgetAndATextGiveEachTensorItsType) {
  const std::string rows = path("rows.jsonl");
  const auto bytes = [&](const std::string& type) {
    return quantized({"--type", type}).at("weight_bytes").as_int();
  };
  const int64_t least = bytes("int4"), half = (least + bytes("int8")) / 2;
  const Json json =
      quantized({"--target-size", std::to_string(half), "--calibrate", rows, "--sensitivity"});
  EXPECT_LE(json.at("weight_bytes").as_int(), half);
  EXPECT_GT(json.at("weight_bytes").as_int(), least);
  EXPECT_EQ(json.at("type").as_string(), "int4, mixed");
  double noise = 0;
  for (const Json& row : json.at("sensitivity").items()) noise += row.at("noise").as_double();
  EXPECT_GT(noise, 0);
  EXPECT_EQ(run_command({"convert", "--verify", path("q")}).code, 0);
}

TEST_F(QuantizeCommand, ABoundOnPerplexityIsKeptOrNamed) {
  const std::string rows = path("rows.jsonl");
  const Json quality =
      quantized({"--max-perplexity-increase", "0.5%", "--data", rows}).at("quality");
  EXPECT_LE(quality.at("perplexity_after").as_double(),
            1.005 * quality.at("perplexity_before").as_double());
  const Outcome tight =
      quantize({"--max-perplexity-increase", "0.5%", "--target-size", "1KiB", "--data", rows});
  EXPECT_EQ(tight.code, 1);
  EXPECT_THAT(tight.err, HasSubstr("--target-size 1.0 KiB"));
}

TEST_F(QuantizeCommand, WhatNeedsATextSaysSo) {
  EXPECT_EQ(quantize({"--type", "int4", "--sensitivity"}).code, 2);
  EXPECT_EQ(quantize({"--max-perplexity-increase", "1%"}).code, 2);
  EXPECT_EQ(quantize({"--type", "int4", "--target-size", "1GiB"}).code, 2);
}

}  // namespace
}  // namespace mixtral
