// convert and quantize from the command line on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "io/json.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ConvertCommand : public ::testing::Test {
 protected:
  std::string path(const std::string& name) { return (directory_.path() / name).string(); }
  const std::string model_ = testing::fixture("small").string();

 private:
  TemporaryDirectory directory_;
};

TEST_F(ConvertCommand, ConvertsAndChecksAgainAndFailsWhereSomethingChanged) {
  const Outcome made = run_command({"convert", "--model", model_, "--to", "gguf", "--type", "q8_0",
                                    "--out", path("m.gguf"), "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(Json::parse(made.out, "out").at("tensors").as_int(), 41);
  ASSERT_EQ(run_command({"convert", "--verify", path("m.gguf")}).code, 0);
  fs::resize_file(path("m.gguf"), fs::file_size(path("m.gguf")) - 64);
  EXPECT_EQ(run_command({"convert", "--verify", path("m.gguf")}).code, 1);
  fs::remove(path("m.gguf.receipt.json"));
  EXPECT_THAT(run_command({"convert", "--verify", path("m.gguf")}).err, HasSubstr("receipt"));
}

TEST_F(ConvertCommand, WhatMakesNoSenseIsAUsageError) {
  const auto code = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"convert", "--model", model_});
    return run_command(more).code;
  };
  EXPECT_EQ(code({"--to", "gguf", "--out", path("d")}), 2);
  EXPECT_EQ(code({"--to", "hf", "--out", path("d.gguf")}), 2);
  EXPECT_EQ(code({"--to", "hf", "--type", "q4_k_m", "--out", path("d")}), 2);
  EXPECT_EQ(code({"--to", "onnx", "--out", path("d")}), 2);
  EXPECT_EQ(code({"--out", path("d")}), 2);
  EXPECT_EQ(code({"--verify", path("d")}), 2);
}

TEST_F(ConvertCommand, AnAdapterNamesItsModel) {
  const fs::path lora = testing::fixture("small-lora");
  fs::copy(lora / "adapter", path("adapter"));
  std::string config = read_file(lora / "adapter" / "adapter_config.json");
  const std::string nothing = "\"base_model_name_or_path\": null";
  ASSERT_NE(config.find(nothing), std::string::npos);
  config.replace(config.find(nothing), nothing.size(),
                 "\"base_model_name_or_path\": \"" + (lora / "base").string() + "\"");
  write_file(path("adapter/adapter_config.json"), config);
  const Outcome made = run_command(
      {"convert", "--adapter", path("adapter"), "--to", "gguf", "--out", path("lora.gguf")});
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_TRUE(fs::exists(path("lora.gguf")));
}

TEST_F(ConvertCommand, OverwriteReplacesModelsAlone) {
  const std::vector<std::string> command = {"convert", "--model", model_,   "--to", "hf",
                                            "--out",   path("d"), "--type", "bf16", "--overwrite"};
  ASSERT_EQ(run_command(command).code, 0);
  EXPECT_EQ(run_command(command).code, 0);
  std::ofstream(path("d/thesis.txt")) << "mine";
  EXPECT_THAT(run_command(command).err, HasSubstr("thesis.txt"));
  EXPECT_TRUE(fs::exists(path("d/thesis.txt")));
}

TEST_F(ConvertCommand, QuantizeSaysWhatItDidToAText) {
  const std::string text = (testing::fixture("small") / "data.jsonl").string();
  const Outcome made =
      run_command({"quantize", "--model", model_, "--type", "int8", "--group-size", "32",
                   "--calibrate", text, "--out", path("q"), "--context", "16", "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  const Json json = Json::parse(made.out, "out");
  const Json& quality = json.at("quality");
  EXPECT_GT(quality.at("tokens").as_int(), 0);
  EXPECT_NEAR(quality.at("perplexity_after").as_double(),
              quality.at("perplexity_before").as_double(), 1);
  EXPECT_GE(quality.at("kl_divergence").as_double(), -1e-9);
}

TEST_F(ConvertCommand, ABudgetChoosesTheType) {
  const Outcome made = run_command(
      {"quantize", "--model", model_, "--target-size", "1GiB", "--out", path("m.gguf"), "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(Json::parse(made.out, "out").at("type").as_string(), "q8_0");
  EXPECT_THAT(
      run_command({"quantize", "--model", model_, "--target-size", "1KiB", "--out", path("n.gguf")})
          .err,
      HasSubstr("smallest"));
  EXPECT_EQ(run_command({"quantize", "--model", model_, "--out", path("n.gguf")}).code, 2);
}

}  // namespace
}  // namespace mixtral
