// The pretrain command from its command line on.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "base/file.h"
#include "base/random.h"
#include "cli/common.h"
#include "io/checksum.h"
#include "io/json.h"
#include "tests/support/command.h"
#include "train/checkpoint_store.h"
#include "train/metrics.h"
#include "train/train_state.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

class Pretrain : public ::testing::Test {
 protected:
  Pretrain() {
    std::string pattern = (fs::temp_directory_path() / "mixtral-pretrain-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    std::string lines;
    RandomStream random(3);
    for (int i = 0; i < 40; ++i) {
      lines += "{\"input_ids\": [";
      const auto start = random.below(30);
      for (uint64_t j = 0; j < 10; ++j)
        lines += std::to_string((start + j * 2) % 30) + (j < 9 ? ", " : "]}\n");
    }
    fs::create_directory(folder_ / "data");
    write_file(folder_ / "data" / "train.jsonl", lines);
    write_file(folder_ / "data" / "val.jsonl", lines.substr(0, lines.find('\n') + 1));
  }
  ~Pretrain() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  fs::path run_path() const { return folder_ / "run"; }

  static int call(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "pretrain");
    return run_command_here(std::move(arguments));
  }
  static Outcome run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "pretrain");
    return run_command(arguments);
  }
  /// A very small model on the data above, into `run`.
  std::vector<std::string> flags(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"--model",
                                    "tiny",
                                    "--data",
                                    path("data"),
                                    "--out",
                                    run_path().string(),
                                    "--vocab-size",
                                    "32",
                                    "--hidden-size",
                                    "16",
                                    "--intermediate-size",
                                    "16",
                                    "--layers",
                                    "1",
                                    "--heads",
                                    "2",
                                    "--kv-heads",
                                    "1",
                                    "--experts",
                                    "2",
                                    "--batch-size",
                                    "4",
                                    "--context",
                                    "16",
                                    "--sample-tokens",
                                    "0",
                                    "--device",
                                    "cpu",
                                    "--threads",
                                    "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static std::string weights(const fs::path& run) {
    return checksum_file(*find_checkpoint(run) / "model.safetensors").hex();
  }

  fs::path folder_;
};

TEST_F(Pretrain, SaysWhichContextReadsRecordsWhole) {
  const Outcome cut = run(flags({"--iters", "1", "--context", "8"}));
  EXPECT_EQ(cut.code, 0) << cut.err;
  EXPECT_NE(cut.err.find("note: 100% of the training records are longer than --context 8 and are "
                         "cut into windows that do not see each other; --context 16 --batch-size "
                         "2 reads all of them whole"),
            std::string::npos)
      << cut.err;
  const Outcome whole = run(flags({"--iters", "1", "--overwrite"}));
  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.err.find("note:"), std::string::npos) << whole.err;
}

TEST_F(Pretrain, TrainsEvaluatesSavesAndReports) {
  const Outcome o =
      run(flags({"--iters", "20", "--eval-every", "10", "--log-every", "5", "--json"}));
  ASSERT_EQ(o.code, 0) << o.err;
  const Json json = Json::parse(o.out, "stdout");  // results alone
  EXPECT_EQ(json.at("step").as_int(), 20);
  EXPECT_EQ(json.at("stopped").as_string(), "finished");
  EXPECT_TRUE(fs::exists(json.at("checkpoint").as_string()));
  for (const char* file : {"config.yaml", "metrics.jsonl", "loss.svg", "loss.png"})
    EXPECT_TRUE(fs::exists(run_path() / file)) << file;
  std::vector<int64_t> steps;
  for (const MetricsLine& line : read_metrics(run_path() / "metrics.jsonl"))
    steps.push_back(line.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 5, 10, 15, 20}));
  EXPECT_NE(o.err.find("validation loss"), std::string::npos) << o.err;
}

TEST_F(Pretrain, EndsWithAnErrorAndNoCheckpointWhereTheLossIsNotFinite) {
  const Outcome o =
      run(flags({"--iters", "3", "--lr", "1e12", "--warmup", "0", "--schedule", "constant", "-q"}));
  EXPECT_EQ(o.code, 1) << o.out;
  EXPECT_NE(o.err.find("no finite number"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("--lr"), std::string::npos) << o.err;
  EXPECT_FALSE(find_checkpoint(run_path()));
}

TEST_F(Pretrain, TakesAFolderOfTextsAndSaysWhatValidates) {
  fs::create_directories(folder_ / "notes");
  write_file(folder_ / "notes/a.txt", std::string(400, 'a'));
  write_file(folder_ / "notes/b.md", std::string(300, 'b'));
  auto all = flags({"--iters", "2", "--vocab-size", "258"});
  std::ranges::replace(all, path("data"), path("notes"));
  const Outcome o = run(all);
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.err.find("the last 10% of each text"), std::string::npos) << o.err;
  const Outcome resumed = run({"--resume", run_path().string(), "--threads", "1"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
}

TEST_F(Pretrain, ADumpedConfigurationFollowsWhatIsEdited) {
  const Outcome dumped = run(flags({"--iters", "200", "--dump-config"}));
  ASSERT_EQ(dumped.code, 0) << dumped.err;
  EXPECT_NE(dumped.out.find("\niters: 200\n"), std::string::npos) << dumped.out;
  for (const char* derived : {"\n# warmup: 20  # derived\n", "\n# lr: ", "\n# eval-every: 50  #"})
    EXPECT_NE(dumped.out.find(derived), std::string::npos) << derived << dumped.out;
  std::string edited = dumped.out;
  edited.replace(edited.find("iters: 200"), 10, "iters: 1000");
  write_file(folder_ / "edited.yaml", edited);
  const Outcome again = run({"--config", path("edited.yaml"), "--dump-config"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.out.find("\n# warmup: 100  # derived\n"), std::string::npos) << again.out;
}

TEST_F(Pretrain, IsQuietWhenAsked) {
  const Outcome o = run(flags({"--iters", "2", "--quiet", "--json"}));
  EXPECT_EQ(o.code, 0);
  EXPECT_EQ(o.err, "");
}

TEST_F(Pretrain, RefusesWhatMakesNoSense) {
  struct Case {
    std::vector<std::string> flags;
    int code;
    std::string expected;
  };
  const Case cases[] = {
      {{"--model", "tiny"}, 2, "--data is missing"},
      {{"--data", path("data")}, 2, "--out is missing"},
      {{"--data", path("data"), "--out", path("x")}, 2, "--model"},
      {{"--data", path("data"), "--out", path("x"), "--model", "tinny"}, 1, "tinny"},
      {{"--data", path("nowhere"), "--out", path("x"), "--model", "tiny"}, 1, "nowhere"},
      {flags({"--lr", "-1"}), 2, "--lr"},
      {flags({"--warmup", "5000"}), 2, "--warmup"},
      {flags({"--schedule", "linear"}), 2, "--schedule"},
      {flags({"--iters", "0"}), 2, "--iters"},
      {flags({"--kv-heads", "3"}), 1, "num_key_value_heads"},
      {flags({"--resume", path("nowhere"), "--out", path("nowhere")}), 1, "no run to resume"},
      {flags({"--vocab-size", "8"}), 1, "train.jsonl:1"},
  };
  for (const Case& c : cases) {
    const Outcome o = run(c.flags);
    EXPECT_EQ(o.code, c.code) << o.err;
    EXPECT_NE(o.err.find(c.expected), std::string::npos) << c.expected << "\n-> " << o.err;
    EXPECT_EQ(o.out, "");
  }
}

TEST_F(Pretrain, DumpsAConfigurationThatRepeatsTheRun) {
  const Outcome dumped = run(flags({"--iters", "6", "--dump-config"}));
  ASSERT_EQ(dumped.code, 0) << dumped.err;
  EXPECT_FALSE(fs::exists(run_path()));
  write_file(folder_ / "run.yaml", dumped.out);
  const Outcome first = run({"--config", path("run.yaml")});
  ASSERT_EQ(first.code, 0) << first.err;
  const Outcome second = run(flags({"--iters", "6", "--out", path("other")}));
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(weights(run_path()), weights(folder_ / "other"));
  // A run's own config.yaml is such a file, too.
  const Outcome third =
      run({"--config", (run_path() / "config.yaml").string(), "--out", path("third")});
  ASSERT_EQ(third.code, 0) << third.err;
  EXPECT_EQ(weights(run_path()), weights(folder_ / "third"));
}

TEST_F(Pretrain, DoesNotWriteOverARunUnasked) {
  ASSERT_EQ(run(flags({"--iters", "2", "-q"})).code, 0);
  const Outcome o = run(flags({"--iters", "2"}));
  EXPECT_EQ(o.code, 1);
  EXPECT_NE(o.err.find("--overwrite"), std::string::npos) << o.err;
  EXPECT_EQ(run(flags({"--iters", "2", "--overwrite", "-q"})).code, 0);
}

TEST_F(Pretrain, SavesOnSigtermEndsWith143AndContinuesBitForBit) {
  const auto arguments = flags({"--iters", "400", "--save-every", "0", "--eval-every", "50", "-q"});
  const pid_t child = ::fork();
  if (child == 0) ::_exit(call(arguments));
  const fs::path metrics = run_path() / "metrics.jsonl";
  for (int i = 0; i < 2000 && (!fs::exists(metrics) || fs::file_size(metrics) == 0); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ::kill(child, SIGTERM);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 143);
  const auto stopped = CheckpointStore::list_in(run_path() / "checkpoints");
  ASSERT_FALSE(stopped.empty());
  EXPECT_LT(stopped.back().step, 400);
  const Outcome resumed = run({"--resume", run_path().string()});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  auto whole = arguments;
  whole.insert(whole.end(), {"--overwrite", "--out", path("whole")});
  ASSERT_EQ(run(whole).code, 0);
  EXPECT_EQ(weights(run_path()), weights(folder_ / "whole"));
}

TEST_F(Pretrain, SaysWhichFlagsARunKeepsWhenItIsResumed) {
  ASSERT_EQ(run(flags({"--iters", "4", "--lr", "1e-3", "-q"})).code, 0);
  const Outcome o = run({"--resume", run_path().string(), "--iters", "8", "--batch-size", "2",
                         "--lr", "1e-4", "--layers", "7"});
  ASSERT_EQ(o.code, 0) << o.err;
  for (const char* expected :
       {"--batch-size 2 is ignored, and the run's 4 kept", "--layers 7 is ignored",
        "--lr 0.0001 takes the place of the run's 0.001", "--iters 8 takes the place",
        "continuing from"})
    EXPECT_NE(o.err.find(expected), std::string::npos) << expected << "\n-> " << o.err;
  EXPECT_EQ(read_metrics(run_path() / "metrics.jsonl").back().step, 8);
}

TEST_F(Pretrain, DoesNotContinueOnOtherData) {
  ASSERT_EQ(run(flags({"--iters", "4", "-q"})).code, 0);
  std::ofstream(folder_ / "data" / "train.jsonl", std::ios::app) << "{\"input_ids\": [1, 2, 3]}\n";
  const Outcome o = run({"--resume", run_path().string(), "--iters", "8"});
  EXPECT_EQ(o.code, 1);
  EXPECT_NE(o.err.find("not the data that the run was trained on"), std::string::npos) << o.err;
}

}  // namespace
}  // namespace mixtral
