// inspect experts and route, evaluate's router figures, and --tensorboard, from the command line
// on.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "io/json.h"
#include "tests/support/command.h"
#include "train/checkpoint_store.h"
#include "train/metrics.h"
#include "train/tensorboard.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// A very small model, trained for a few steps.
class Experts : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string pattern = (fs::temp_directory_path() / "mixtral-experts-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    std::string text;
    for (int i = 0; i < 60; ++i)
      text += "On day " + std::to_string(i) + ", Anna ate a <pie> & ran.\n";
    write_file(folder_ / "text.txt", text);
    const Outcome o = run_command(train_flags("run", "12"));
    ASSERT_EQ(o.code, 0) << o.err;
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::vector<std::string> train_flags(const std::string& name, const std::string& steps) {
    return {"pretrain",
            "--model",
            "tiny",
            "--data",
            path("text.txt"),
            "--out",
            path(name),
            "--hidden-size",
            "16",
            "--intermediate-size",
            "16",
            "--layers",
            "2",
            "--heads",
            "2",
            "--kv-heads",
            "1",
            "--experts",
            "4",
            "--context",
            "32",
            "--iters",
            steps,
            "--batch-size",
            "2",
            "--windows",
            "random",
            "--log-every",
            "2",
            "--save-every",
            "4",
            "--eval-every",
            "4",
            "--keep-last",
            "9",
            "--quiet",
            "--json",
            "--sample-tokens",
            "0",
            "--tensorboard"};
  }
  static std::string path(const std::string& name) { return (folder_ / name).string(); }
  static std::vector<int64_t> event_steps(const std::string& run) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder_ / run / "tensorboard"))
      files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<int64_t> steps;
    for (const fs::path& file : files)
      for (const auto& event : parse_events(read_file(file)))
        if (!event.scalars.empty()) steps.push_back(event.step);
    return steps;
  }
  static std::vector<int64_t> metric_steps(const std::string& run) {
    std::vector<int64_t> steps;
    for (const MetricsLine& line : read_metrics(folder_ / run / "metrics.jsonl"))
      steps.push_back(line.step);
    return steps;
  }

  static inline fs::path folder_;
};

TEST_F(Experts, AgreeWithEvaluate) {
  const std::vector<std::string> data{"--model",   path("run"), "--data", path("text.txt"),
                                      "--context", "32",        "--json", "--device",
                                      "cpu",       "--dtype",   "fp32"};
  auto with = [&](std::vector<std::string> command) {
    command.insert(command.end(), data.begin(), data.end());
    return command;
  };
  const Outcome experts = run_command(with({"inspect", "experts", "--tokens", "0"}));
  const Outcome scores = run_command(with({"evaluate"}));
  ASSERT_EQ(experts.code, 0) << experts.err;
  ASSERT_EQ(scores.code, 0) << scores.err;
  const Json report = Json::parse(experts.out, "experts"),
             scored = Json::parse(scores.out, "scores");
  EXPECT_EQ(report.at("tokens").as_int(), scored.at("positions").as_int());
  for (size_t l = 0; l < 2; ++l) {
    const Json& layer = report.at("layers").items()[l];
    EXPECT_NEAR(layer.at("token_entropy").as_double(), scored.at("entropy").items()[l].as_double(),
                1e-5);
    EXPECT_NEAR(layer.at("load_entropy").as_double(),
                scored.at("load_entropy").items()[l].as_double(), 1e-6);
    EXPECT_EQ(layer.at("dead").items().size(), scored.at("dead").items()[l].items().size());
    for (size_t e = 0; e < 4; ++e)
      EXPECT_NEAR(2 * layer.at("load").items()[e].as_double(),
                  scored.at("load").items()[l].items()[e].as_double(), 1e-6);
  }
  for (const char* kind : {"name", "digit", "punctuation", "newline", "space", "word start"})
    EXPECT_TRUE(report.at("kinds").find(kind)) << kind;
}

TEST_F(Experts, WriteAPageAndATable) {
  const Outcome o = run_command({"inspect", "experts", "--model", path("run"), "--data",
                                 path("text.txt"), "--context", "32", "--html", path("e.html")});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.out.find("layer 1: entropy of the load"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("typical tokens"), std::string::npos);
  EXPECT_NE(o.err.find("wrote "), std::string::npos);
  const std::string page = read_file(folder_ / "e.html");
  EXPECT_TRUE(page.starts_with("<!DOCTYPE html>"));
  EXPECT_EQ(page.find("<pie>"), std::string::npos);
}

TEST_F(Experts, LookAtAsManyTokensAsAsked) {
  const Outcome o =
      run_command({"inspect", "experts", "--model", path("run"), "--data", path("text.txt"),
                   "--context", "32", "--batch-size", "1", "--tokens", "40", "--json"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(Json::parse(o.out, "experts").at("tokens").as_int(), 64);  // two rows of 32
}

TEST_F(Experts, RefuseWhatTheyCannotUse) {
  write_file(folder_ / "pairs.jsonl", "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n");
  const std::vector<std::string> start{"inspect", "experts", "--model", path("run"), "--data"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), start.begin(), start.end());
    return run_command(more);
  };
  const Outcome pairs = with({path("pairs.jsonl")});
  EXPECT_EQ(pairs.code, 1);
  EXPECT_NE(pairs.err.find("preference pairs"), std::string::npos) << pairs.err;
  EXPECT_EQ(with({path("nowhere.jsonl")}).code, 1);
  EXPECT_EQ(with({path("text.txt"), "--tokens", "-3"}).code, 2);
  EXPECT_EQ(with({path("text.txt"), "--aux-coef", "1"}).code, 2) << "losses play no part";
  EXPECT_EQ(with({path("text.txt"), "--context", "32", "--html", path("no/such/e.html")}).code, 1);
}

TEST_F(Experts, RouteSumsUp) {
  const Outcome text =
      run_command({"inspect", "route", "--model", path("run"), "--prompt", "Hi 5"});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("digit"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("layer 1: entropy of the load"), std::string::npos);
  const Outcome json =
      run_command({"inspect", "route", "--model", path("run"), "--prompt", "Hi 5", "--json"});
  const Json tokens = Json::parse(json.out, "route");
  ASSERT_EQ(tokens.items().size(), 4U);
  const Json& token = tokens.items()[3];
  EXPECT_EQ(token.at("kind").as_string(), "digit");
  ASSERT_EQ(token.at("layers").items().size(), 2U);
  double weights = 0;
  for (const Json& expert : token.at("layers").items()[0].items())
    weights += expert.at("weight").as_double();
  EXPECT_NEAR(weights, 1, 1e-6);
}

TEST_F(Experts, TrainingWritesEventsForEveryLineAndGoesOnWithThem) {
  EXPECT_EQ(event_steps("run"), metric_steps("run"));
  ASSERT_EQ(run_command(train_flags("again", "12")).code, 0);
  fs::remove_all(folder_ / "again" / "checkpoints" / "step-00000012");
  const Outcome o =
      run_command({"pretrain", "--resume", path("again"), "--iters", "14", "--quiet"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(event_steps("again"), metric_steps("again"));
  EXPECT_EQ(metric_steps("again").back(), 14);
  auto files = fs::directory_iterator(folder_ / "again" / "tensorboard");
  EXPECT_EQ(std::distance(begin(files), end(files)), 2);
  // A new run in its place has none of the old one's.
  auto flags = train_flags("again", "3");
  flags.push_back("--overwrite");
  ASSERT_EQ(run_command(flags).code, 0);
  EXPECT_EQ(event_steps("again"), metric_steps("again"));
}

}  // namespace
}  // namespace mixtral
