// finetune from the command line on, against reference results of PEFT and of a preference loss.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "model/adapter_file.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "train/checkpoint_store.h"
#include "train/metrics.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

Outcome run(const Arguments& arguments) { return run_command(arguments); }

class PeftFixture : public ::testing::TestWithParam<const char*> {};

TEST_P(PeftFixture, TenLossesAgree) {
  const fs::path directory = testing::fixture(GetParam());
  if (!fs::exists(directory)) GTEST_SKIP() << "no reference results at " << directory;
  const TemporaryDirectory scratch;
  const auto rows = testing::read_batch(directory / "data.jsonl").sequences();
  const Outcome o = run({"finetune",
                         "--model",
                         (directory / "base").string(),
                         "--data",
                         (directory / "data.jsonl").string(),
                         "--out",
                         (scratch.path() / "run").string(),
                         "--method",
                         "lora",
                         "--adapter",
                         (directory / "adapter").string(),
                         "--iters",
                         "10",
                         "--batch-size",
                         std::to_string(rows),
                         "--pack",
                         "off",
                         "--shuffle",
                         "off",
                         "--dtype",
                         "fp32",
                         "--lr",
                         "1e-3",
                         "--schedule",
                         "constant",
                         "--warmup",
                         "0",
                         "--beta1",
                         ".9",
                         "--beta2",
                         ".999",
                         "--adam-eps",
                         "1e-8",
                         "--weight-decay",
                         "0",
                         "--grad-clip",
                         "0",
                         "--aux-loss",
                         "hf",
                         "--aux-coef",
                         ".02",
                         "--log-every",
                         "1",
                         "--device",
                         "cpu",
                         "-q"});
  ASSERT_EQ(o.code, 0) << o.err;
  const Json expected = Json::load(directory / "expected.json");
  const auto& losses = expected.at("adamw").at("losses").items();
  const auto lines = read_metrics(scratch.path() / "run" / "metrics.jsonl");
  ASSERT_EQ(lines.size(), losses.size());
  for (size_t i = 0; i < lines.size(); ++i)
    EXPECT_NEAR(lines[i].loss, losses[i].as_double(), 1e-4) << "step " << i + 1;
  const AdapterFile written =
      AdapterFile::load(scratch.path() / "run" / "checkpoints" / "step-00000010",
                        ModelConfig::load(directory / "base"));
  EXPECT_FALSE(written.modules.empty());
}

INSTANTIATE_TEST_SUITE_P(All, PeftFixture,
                         ::testing::Values("small-lora", "lora-qv", "lora-attention-rs",
                                           "lora-experts"),
                         [](const auto& c) {
                           std::string name = c.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(PreferenceFixture, LossesLogProbabilitiesAndGradientsAgree) {
  const fs::path directory = testing::fixture("dpo");
  if (!fs::exists(directory)) GTEST_SKIP() << "no reference results at " << directory;
  const TemporaryDirectory scratch;
  const fs::path gradients = scratch.path() / "gradients.safetensors";
  const Outcome o =
      run({"inspect", "gradients", "--method", "dpo", "--model", (directory / "policy").string(),
           "--reference", (directory / "reference").string(), "--beta", ".1", "--label-smoothing",
           ".1", "--data", (directory / "data.jsonl").string(), "--out", gradients.string(),
           "--json", "--device", "cpu"});
  ASSERT_EQ(o.code, 0) << o.err;
  const Json json = Json::parse(o.out, "stdout");
  const Json expected = Json::load(directory / "expected.json");
  EXPECT_NEAR(json.at("loss").as_double(), expected.at("loss_smoothed").as_double(), 1e-5);
  const auto& rows = json.at("rows").items();
  const auto& expected_rows = expected.at("rows").items();
  ASSERT_EQ(rows.size(), expected_rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const char* key :
         {"policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"})
      EXPECT_NEAR(rows[i].at(key).as_double(), expected_rows[i].at(key).as_double(), 1e-4) << key;
    EXPECT_NEAR(rows[i].at("loss").as_double(), expected_rows[i].at("loss_smoothed").as_double(),
                1e-5);
  }
  const SafetensorsFile actual(gradients), reference(directory / "expected.safetensors");
  for (const auto& entry : reference.entries())
    EXPECT_LE(testing::relative_error(testing::read_values(actual, entry.name.substr(5)),
                                      testing::read_values(reference, entry.name)),
              2e-4)
        << entry.name;
}

}  // namespace
}  // namespace mixtral
