// The bench command: its figures belong together, and its flags are checked.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cli/bench_ceilings.h"
#include "io/json.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/gguf_model.h"

namespace mixtral {
namespace {

Json bench(const std::string& work, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"bench",    work,       "--model", "tiny",      "--layers",
                                        "1",        "--warmup", "1",       "--context", "32",
                                        "--device", "cpu",      "--json"};
  if (work != "ops") more.insert(more.end(), {"--steps", "3"});
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = run_command(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return Json::parse(outcome.out, "bench's output");
}

TEST(Bench, TrainingReportsRateLossMemoryAndKernels) {
  const Json json = bench("pretrain", {"--batch-size", "2", "--grad-accumulation", "2"});
  EXPECT_EQ(json.at("layers").as_int(), 1);
  const double step = json.at("step_ms").as_double() * 1e-3;
  EXPECT_NEAR(json.at("tok_per_s").as_double(), 2 * 2 * 32 / step, 1);
  EXPECT_NEAR(json.at("loss").as_double(), std::log(256), 1);  // random tokens, random weights
  EXPECT_GT(json.at("copy_gb_per_s").as_double(), 0);
  EXPECT_GT(json.at("product_tflop_per_s").as_double(), 0);
  EXPECT_GT(json.at("planned_gib").as_double(), 0);
  bool found = false;
  for (const Json& kernel : json.at("kernels").items()) {
    EXPECT_GT(kernel.at("calls").as_int(), 0);
    if (kernel.at("op").as_string() != "grouped_matmul_weight 8x320x128") continue;
    found = true;
    EXPECT_EQ(kernel.at("calls").as_int(), 2);  // one layer, two micro-batches
  }
  EXPECT_TRUE(found);
}

TEST(Bench, OpsAreTheTableOfKernelsBesideTheCeilingsAlone) {
  const Json json = bench("ops"), whole = bench("pretrain");
  EXPECT_GT(json.at("copy_gb_per_s").as_double(), 0);
  EXPECT_GT(json.at("product_tflop_per_s").as_double(), 0);
  for (const char* figure : {"step_ms", "tok_per_s", "loss", "peak_gib"})
    EXPECT_EQ(json.find(figure), nullptr) << figure;
  EXPECT_EQ(json.at("kernels").items().size(), whole.at("kernels").items().size());
}

TEST(Bench, RoundsTheRotaryFrequenciesWhereAsked) {
  EXPECT_NE(bench("pretrain", {"--rope-frequencies", "bf16"}).at("loss").as_double(),
            bench("pretrain").at("loss").as_double());
}

TEST(Bench, TuningTrainsTheAdapterAlone) {
  const Json json = bench("finetune", {"--targets", "q_proj", "--rank", "4"});
  EXPECT_EQ(json.at("trained_parameters").as_double(), 4 * (128 + 128));
}

TEST(Bench, TuningCanStandOnABaseInFewBits) {
  const Json whole = bench("finetune"), few = bench("finetune", {"--quantize-base", "nf4"});
  EXPECT_EQ(few.at("quantize_base").as_string(), "nf4");
  // Its memory is train/quantized_base_test's: the plan here counts what this process holds, too.
  EXPECT_EQ(few.at("trained_parameters").as_double(), whole.at("trained_parameters").as_double());
  int64_t calls = 0;
  for (const Json& kernel : few.at("kernels").items())
    if (kernel.at("op").as_string() == "dequantize") calls = kernel.at("calls").as_int();
  EXPECT_GT(calls, 0);
}

TEST(Bench, GenerationReportsTokensASecond) {
  EXPECT_GT(bench("prefill").at("tok_per_s").as_double(), 0);
  EXPECT_GT(bench("decode", {"--tokens", "8"}).at("weights_gb_per_s").as_double(), 0);
  const Json few = bench("decode", {"--tokens", "8", "--quantize-base", "nf4"});
  EXPECT_GT(few.at("tok_per_s").as_double(), 0);
  EXPECT_LT(few.at("planned_gib").as_double(), bench("decode").at("planned_gib").as_double());
  const Json codes = bench("decode", {"--tokens", "8", "--quantize-base", "q4_0"});
  EXPECT_GT(codes.at("tok_per_s").as_double(), 0);
}

TEST(Bench, GenerationKeepsTheFormatsOfAFile) {
  const TemporaryDirectory directory;
  const std::string file =
      testing::toy_gguf::model_file(directory.path() / "model.gguf", "q8_0").string();
  const auto bytes_a_step = [&](const std::string& dtype) {
    const Outcome outcome =
        run_command({"bench", "decode", "--model", file, "--context", "8", "--tokens", "4",
                     "--steps", "1", "--device", "cpu", "--dtype", dtype, "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const Json json = Json::parse(outcome.out, "bench's output");
    return json.at("weights_gb_per_s").as_double() * json.at("step_ms").as_double();
  };
  EXPECT_LT(bytes_a_step("auto"), 0.7 * bytes_a_step("fp32"));
}

TEST(Bench, GenerationIsMeasuredAtADepth) {
  const Json decode = bench("decode", {"--tokens", "8", "--depth", "100", "--batch", "2"});
  EXPECT_EQ(decode.at("depth").as_int(), 100);
  EXPECT_GT(decode.at("with_cache_gb_per_s").as_double(),
            decode.at("weights_gb_per_s").as_double());
  const Json prefill = bench("prefill", {"--depth", "64", "--batch", "2"});
  EXPECT_GT(prefill.at("tok_per_s").as_double(), 0);
  const Outcome shallow = run_command({"bench", "prefill", "--model", "tiny", "--depth", "1"});
  EXPECT_EQ(shallow.code, 2);
  EXPECT_NE(shallow.err.find("--depth 1"), std::string::npos) << shallow.err;
}

TEST(Bench, GenerationIsShownByKernel) {
  for (const char* work : {"decode", "prefill"}) {
    std::vector<std::string> more{"--profile"};
    if (std::string(work) == "decode") more.insert(more.end(), {"--tokens", "8"});
    const Json json = bench(work, more);
    int64_t products = 0;
    for (const Json& kernel : json.at("kernels").items())
      if (kernel.at("op").as_string() == "grouped_matmul_swiglu")
        products = kernel.at("calls").as_int();
    EXPECT_EQ(products, 1) << work;  // of the one layer, in one step
    EXPECT_LE(json.at("kernel_seconds").as_double(), json.at("step_seconds").as_double());
  }
}

TEST(Bench, DecodingIsMeasuredAfterAsManyTokensAsContextSays) {
  const Outcome outcome =
      run_command({"bench", "decode", "--model", "tiny", "--layers", "1", "--context", "300",
                   "--tokens", "8", "--steps", "1", "--warmup", "1"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("8 tokens after 300"), std::string::npos) << outcome.out;
}

TEST(Bench, ReportsWhatTheMachineCanDo) {
  const Json json = bench("decode", {"--tokens", "8"});
  for (const char* figure : {"read_gb_per_s", "copy_gb_per_s", "product_tflop_per_s"})
    EXPECT_GT(json.at(figure).as_double(), 0) << figure;
}

TEST(Bench, RefusesAShareOfACeilingThatCannotBe) {
  Ceilings ceilings;
  EXPECT_NEAR(share_of(ceilings, "a product", 104, 100), 1.04, 1e-9);
  EXPECT_THROW(share_of(ceilings, "a product", 106, 100), Error);
  ceilings.firm = false;
  EXPECT_NEAR(share_of(ceilings, "a product", 106, 100), 1.06, 1e-9);
  ceilings.f32 = 3;
  ceilings.raise({.read = 2, .f32 = 1});
  EXPECT_EQ(ceilings.read, 2);
  EXPECT_EQ(ceilings.f32, 3);
}

TEST(Bench, RefusesWhatItCannotMeasure) {
  EXPECT_EQ(run_command({"bench", "serving", "--model", "tiny"}).code, 2);
  EXPECT_EQ(run_command({"bench", "pretrain", "--model", "tiny", "--keep-layers", "1"}).code, 2);
  EXPECT_EQ(run_command({"bench", "pretrain", "--model", "tiny", "--quantize-base", "fp8"}).code,
            2);
  const std::vector<std::pair<std::string, std::vector<std::string>>> useless = {
      {"pretrain", {"--rank", "--targets", "--tokens", "--batch", "--depth", "--profile"}},
      {"ops", {"--rank", "--targets", "--tokens", "--steps", "--graph", "--batch", "--depth"}},
      {"finetune", {"--tokens", "--batch", "--depth", "--profile"}},
      {"prefill",
       {"--rank", "--targets", "--tokens", "--batch-size", "--grad-accumulation",
        "--optimizer-state", "--graph", "--recompute", "--keep-layers"}},
      {"decode",
       {"--rank", "--targets", "--batch-size", "--grad-accumulation", "--optimizer-state",
        "--graph", "--recompute", "--keep-layers"}}};
  const std::map<std::string, std::string> values = {
      {"--targets", "q_proj"}, {"--optimizer-state", "bf16"}, {"--graph", "on"}};
  for (const auto& [work, flags] : useless)
    for (const std::string& flag : flags) {
      std::vector<std::string> arguments = {"bench", work, "--model", "tiny", flag};
      if (flag != "--recompute" && flag != "--profile")
        arguments.push_back(values.contains(flag) ? values.at(flag) : "4");
      const Outcome o = run_command(arguments);
      EXPECT_EQ(o.code, 2) << work << " " << flag;
      EXPECT_NE(o.err.find(fmt::format("bench {} has no use for {}", work, flag)),
                std::string::npos)
          << o.err;
    }
  const Outcome large = run_command({"bench", "decode", "--model", "8x7b", "--layers", "1024"});
  EXPECT_EQ(large.code, 1);
  EXPECT_NE(large.err.find("weights"), std::string::npos) << large.err;
}

Json serve_offline(std::vector<std::string> more) {
  std::vector<std::string> arguments = {"bench",           "serve-offline",
                                        "--model",         "tiny",
                                        "--layers",        "1",
                                        "--requests",      "24",
                                        "--prompt-tokens", "20-40",
                                        "--max-tokens",    "lognormal:8:0.5:16",
                                        "--device",        "cpu",
                                        "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = run_command(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return Json::parse(outcome.out, "bench's output");
}

TEST(Bench, OfflineAnswersEveryRequest) {
  const Json json = serve_offline({"--sequences", "6"});
  EXPECT_EQ(json.at("requests_done").as_double(), 24);
  const double seconds = json.at("seconds").as_double();
  const double tokens = json.at("tokens").as_double();
  EXPECT_NEAR(json.at("tok_per_s").as_double() * seconds, tokens, 1e-6 * tokens);
  EXPECT_NEAR(json.at("prompt_tok_per_s").as_double() * seconds,
              json.at("prompt_tokens").as_double(), 1e-3);
  // Every token is a row of one step.
  EXPECT_NEAR(json.at("sequences_per_step").as_double() * json.at("steps").as_double(), tokens,
              1e-3);
  EXPECT_GT(json.at("most_running").as_double(), 1);
  EXPECT_LE(json.at("most_running").as_double(), 6);
  EXPECT_NEAR(json.at("prompt_steps_time").as_double() + json.at("decode_steps_time").as_double(),
              1, 1e-9);
  EXPECT_EQ(json.at("preemptions").as_double(), 0);
  EXPECT_EQ(json.at("tokens_again").as_double(), 0);
  EXPECT_GT(json.at("steady_tok_per_s").as_double(), 0);
  // The same seed, the same requests.
  const Json again = serve_offline({"--sequences", "6"}), other = serve_offline({"--seed", "2"});
  EXPECT_EQ(again.at("tokens").as_double(), tokens);
  EXPECT_EQ(again.at("steps").as_double(), json.at("steps").as_double());
  EXPECT_NE(other.at("prompt_tokens").as_double(), json.at("prompt_tokens").as_double());
}

TEST(Bench, OfflineKeepsToItsCache) {
  // The memory has room for all of them.
  EXPECT_EQ(serve_offline({}).at("sequences").as_double(), 24);
  const Json few = serve_offline({"--cache-tokens", "160", "--sequences", "8"});
  EXPECT_EQ(few.at("cache_tokens").as_double(), 160);
  EXPECT_EQ(few.at("requests_done").as_double(), 24);
  EXPECT_LE(few.at("most_running").as_double(), 8);
  EXPECT_GT(few.at("preemptions").as_double(), 0);
  EXPECT_GT(few.at("tokens_again").as_double(), 0);
  EXPECT_LT(serve_offline({"--cache-tokens", "160"}).at("sequences").as_double(), 8);
}

TEST(Bench, OfflineIsShownByKernel) {
  const Json json = serve_offline({"--sequences", "6", "--quantize-base", "q8_0", "--profile"});
  int64_t products = 0;
  for (const Json& kernel : json.at("kernels").items())
    if (kernel.at("op").as_string() == "grouped_matmul_swiglu")
      products = kernel.at("calls").as_int();
  EXPECT_EQ(products, 1);
}

TEST(Bench, OfflineHasFlagsOfItsOwn) {
  const std::vector<std::vector<std::string>> wrong = {
      {"bench", "--steps", "3", "serve-offline"},
      {"bench", "serve-offline", "--steps", "3"},
      {"bench", "serve-offline", "--prompt-tokens", "9-3"},
      {"bench", "serve-offline", "--max-tokens", "lognormal:5:1:0"},
      {"bench", "serve-offline", "--requests", "0"}};
  for (const auto& arguments : wrong) {
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 2) << o.err;
  }
  const Outcome small = run_command({"bench", "serve-offline", "--model", "tiny", "--requests", "2",
                                     "--prompt-tokens", "64", "--cache-tokens", "16"});
  EXPECT_EQ(small.code, 1);
  EXPECT_NE(small.err.find("key-value cache"), std::string::npos) << small.err;
}

TEST(Bench, ServeHasFlagsOfItsOwn) {
  const std::string nobody = "http://127.0.0.1:9/v1";
  const Outcome none = run_command({"bench", "serve", "--url", nobody, "--json"});
  EXPECT_EQ(none.code, 1);
  EXPECT_NE(none.err.find("no connection"), std::string::npos) << none.err;
  const std::vector<std::vector<std::string>> wrong = {
      {"bench"},
      {"bench", "serve"},
      {"bench", "--steps", "3", "serve", "--url", nobody},
      {"bench", "serve", "--url", nobody, "--steps", "3"},
      {"bench", "serve", "--url", nobody, "--rate", "1", "--clients", "2"},
      {"bench", "serve", "--url", nobody, "--prompt-tokens", "9-3"},
      {"bench", "serve", "--url", nobody, "--leave", "2"}};
  for (const auto& arguments : wrong) {
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 2) << o.err;
  }
  EXPECT_NE(run_command({"bench", "serve", "--url", "https://a"}).err.find("http://"),
            std::string::npos);
}

}  // namespace
}  // namespace mixtral
