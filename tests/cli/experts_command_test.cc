// `mixtral experts` from the command line on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "io/json.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "tests/support/models.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ExpertsCommand : public ::testing::Test {
 protected:
  std::string path(const std::string& name) { return (directory_.path() / name).string(); }
  std::string dense(const std::string& name, uint64_t seed) {
    ModelConfig config = testing::minimal_config();
    config.num_experts = config.experts_per_token = 1;
    testing::write_dense(path(name), config, testing::draw_model(config, seed));
    return path(name);
  }
  std::string ids() {
    write_file(path("ids.jsonl"), "{\"input_ids\": [1, 5, 9, 3, 30, 2, 7]}\n");
    return path("ids.jsonl");
  }
  Json run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "experts");
    arguments.emplace_back("--json");
    const Outcome made = run_command(arguments);
    EXPECT_EQ(made.code, 0) << made.err;
    return Json::parse(made.code == 0 ? made.out : "{}", "out");
  }
  Outcome fail(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "experts");
    return run_command(arguments);
  }
  const std::string model_ = testing::fixture("small").string();
  const std::string text_ = (testing::fixture("small") / "data.jsonl").string();

 private:
  TemporaryDirectory directory_;
};

TEST_F(ExpertsCommand, UpcyclesAndItsResultVerifies) {
  const Json made = run({"upcycle", "--model", dense("d", 1), "--experts", "4", "--data", ids(),
                         "--context", "16", "--out", path("up")});
  EXPECT_EQ(made.at("experts").as_int(), 4);
  const Json& quality = made.at("quality");
  EXPECT_NEAR(quality.at("perplexity_after").as_double(),
              quality.at("perplexity_before").as_double(), 1e-3);
  EXPECT_EQ(run_command({"convert", "--verify", path("up")}).code, 0);
  EXPECT_EQ(run_command({"generate", "--model", path("up"), "--ids", "1,2", "-n", "2"}).code, 0);
}

TEST_F(ExpertsCommand, PrunesMergesAndAdds) {
  for (const char* by : {"load", "reap"})
    EXPECT_EQ(run({"prune", "--model", model_, "--keep", "3", "--by", by, "--data", text_,
                   "--context", "16", "--out", path(by)})
                  .at("layers")
                  .items()
                  .size(),
              2u);
  EXPECT_EQ(run({"merge", "--model", model_, "--into", "2", "--data", text_, "--context", "16",
                 "--out", path("merged")})
                .at("experts")
                .as_int(),
            2);
  EXPECT_EQ(run({"add", "--model", model_, "--count", "2", "--from", "1,3", "--data", text_,
                 "--context", "16", "--out", path("more.gguf")})
                .at("experts")
                .as_int(),
            6);
  for (const char* name : {"load", "reap", "merged", "more.gguf"})
    EXPECT_EQ(run_command({"convert", "--verify", path(name)}).code, 0) << name;
  const Outcome words = fail({"prune", "--model", path("more.gguf"), "--keep", "4", "--data", text_,
                              "--context", "16", "--out", path("again")});
  EXPECT_THAT(words.out, HasSubstr("perplexity"));
  EXPECT_THAT(words.out, HasSubstr("layer 1: experts"));
}

TEST_F(ExpertsCommand, GraftsByPrompts) {
  write_file(path("a.jsonl"), "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 2]}\n");
  write_file(path("b.jsonl"), "{\"input_ids\": [20, 25, 21]}\n");
  const std::vector<std::string> models = {"graft",       "--base",  dense("d", 1), "--model",
                                           dense("e", 2), "--model", dense("f", 3)};
  std::vector<std::string> all = models;
  all.insert(all.end(), {"--prompts", path("a.jsonl"), "--prompts", path("b.jsonl"), "--data",
                         ids(), "--context", "16", "--out", path("g")});
  EXPECT_EQ(run(all).at("experts").as_int(), 2);
  EXPECT_EQ(run_command({"convert", "--verify", path("g")}).code, 0);
  std::vector<std::string> one_file = models;
  one_file.insert(one_file.end(), {"--prompts", path("a.jsonl"), "--out", path("h")});
  EXPECT_EQ(fail(one_file).code, 2);
}

TEST_F(ExpertsCommand, WhatCannotBeIsRefusedWithTheWayOut) {
  const auto refused = [&](std::vector<std::string> more) {
    const Outcome outcome = fail(std::move(more));
    EXPECT_FALSE(fs::exists(path("out")));
    return std::pair(outcome.code, outcome.err);
  };
  const auto [keep, keep_words] =
      refused({"prune", "--model", model_, "--keep", "4", "--data", text_, "--out", path("out")});
  EXPECT_EQ(keep, 2);
  EXPECT_THAT(keep_words, HasSubstr("--keep"));
  EXPECT_EQ(refused({"prune", "--model", model_, "--keep", "2", "--out", path("out")}).first, 2);
  EXPECT_EQ(refused({"add", "--model", model_, "--count", "1", "--from", "7", "--out", path("out")})
                .first,
            2);
  EXPECT_THAT(
      refused({"upcycle", "--model", model_, "--experts", "4", "--out", path("out")}).second,
      HasSubstr("experts add"));
  EXPECT_THAT(refused({"merge", "--model", dense("d", 1), "--into", "1", "--data", text_, "--out",
                       path("out")})
                  .second,
              HasSubstr("llama"));
  EXPECT_EQ(
      refused({"add", "--model", model_, "--count", "1", "--type", "q8_0", "--out", path("out")})
          .first,
      2);
  // The models that are read stay.
  const std::string model = dense("kept", 1);
  EXPECT_EQ(fail({"graft", "--base", dense("base", 2), "--model", model, "--model", model,
                  "--overwrite", "--out", model})
                .code,
            2);
  EXPECT_TRUE(fs::exists(fs::path(model) / "model.safetensors"));
}

}  // namespace
}  // namespace mixtral
