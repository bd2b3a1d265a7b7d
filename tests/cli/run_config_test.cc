#include "cli/run_config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// A command with a few flags, as the training commands have them.
struct Command {
  Command() {
    config.group("Model");
    config.add("--layers", layers, "", OnResume::run("the weights have that shape"))
        ->check(at_least(1));
    config.group("Optimization");
    cli::Option* rate = config.add("--lr,--learning-rate", lr, "");
    config.add("--lr-of", lr_of, "")->excludes(rate);
    config.add("-b,--batch-size", batch_size, "")->check(at_least(1));
    config.add("--schedule", schedule, "")->check(cli::IsMember({"cosine", "constant"}));
    config.add("--recompute", recompute, "", OnResume::unnoticed());
    config.add("--quiet", quiet, "", OnResume::forgotten());
  }
  void parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());
    app.parse(arguments);
  }

  cli::App app;
  RunConfig config{app};
  std::optional<int64_t> layers;
  std::optional<double> lr, lr_of;
  int64_t batch_size = 16;
  std::string schedule = "cosine";
  bool recompute = false, quiet = false;
};

class RunConfigTest : public ::testing::Test {
 protected:
  RunConfigTest() {
    std::string pattern = (fs::temp_directory_path() / "mixtral-config-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~RunConfigTest() override { fs::remove_all(folder_); }

  fs::path file(const std::string& text) {
    const fs::path path = folder_ / "run.yaml";
    write_file(path, text);
    return path;
  }
  /// The error that loading a text gives.
  std::string refusal(const std::string& text) {
    Command command;
    command.parse({});
    try {
      command.config.load(file(text));
    } catch (const UsageError& error) {
      return error.what();
    }
    return "(accepted)";
  }

  fs::path folder_;
};

TEST_F(RunConfigTest, SetsFlagsFromAFileAndLetsTheCommandLineWin) {
  Command command;
  command.parse({"--batch-size", "4"});
  command.config.load(
      file("# a comment\nlr: 1e-4\nbatch_size: 8\nschedule: constant\nrecompute: true\n"));
  EXPECT_EQ(command.lr, 1e-4);
  EXPECT_EQ(command.batch_size, 4);
  EXPECT_EQ(command.schedule, "constant");
  EXPECT_TRUE(command.recompute);
  EXPECT_FALSE(command.layers);
}

TEST_F(RunConfigTest, NamesFileLineAndKeyOfWhatItRefuses) {
  struct Case {
    std::string text;
    std::vector<std::string> expected;
  };
  const Case cases[] = {
      {"lr: 1\nbatch-sise: 3\n", {"run.yaml:2", "batch-sise", "did you mean batch-size"}},
      {"zzzzzzz: 3\n", {"unknown key", "--help"}},
      {"batch-size: 0\n", {"run.yaml:1", "batch-size", "at least 1"}},
      {"batch-size: many\n", {"batch-size", "many"}},
      {"schedule: linear\n", {"schedule", "linear"}},
      {"lr: [1, 2]\n", {"run.yaml:1", "lr", "expected one value"}},
      {"lr: {a: 1}\n", {"expected one value"}},
      {"lr: 1\nlr: 2\n", {"twice"}},
      {"- lr\n- 2\n", {"keys and values"}},
      {"just text\n", {"keys and values"}},
      {"lr: [1, 2\n", {"not valid YAML"}},
      {std::string(200, '[') + std::string(200, ']'), {"levels deep"}},
      {std::string(2000, '-') + "\n", {"levels deep"}},
      {"lr: 1 #" + std::string(2 << 20, 'x'), {"at most"}},
  };
  for (const Case& c : cases) {
    std::string error;
    try {
      error = refusal(c.text);
    } catch (const Error& other) {
      error = other.what();
    }
    for (const std::string& part : c.expected)
      EXPECT_NE(error.find(part), std::string::npos) << c.text.substr(0, 60) << "\n-> " << error;
  }
}

TEST_F(RunConfigTest, OfTwoKeysThatExcludeEachOtherTheCommandLinesCounts) {
  Command command;
  command.parse({"--lr", "0.1"});
  command.config.load(file("lr-of: 2\n"));
  EXPECT_EQ(command.lr, 0.1);
  EXPECT_FALSE(command.lr_of);
  EXPECT_NE(refusal("lr: 1\nlr-of: 2\n").find("lr-of and lr"), std::string::npos);
}

TEST_F(RunConfigTest, ReadsBackWhatItDumps) {
  Command command;
  command.parse({"--lr", "0.00012", "--layers", "3", "--recompute", "--quiet"});
  const std::string text = command.config.dump();
  EXPECT_EQ(text.find("quiet"), std::string::npos);  // not the run's business
  Command again;
  again.parse({});
  again.config.load(file(text));
  EXPECT_EQ(again.config.dump(), text);
  EXPECT_EQ(again.lr, 0.00012);
  EXPECT_EQ(again.layers, 3);
  EXPECT_TRUE(again.recompute);
}

TEST_F(RunConfigTest, QuotesTextsThatYamlWouldReadOtherwise) {
  for (const std::string text : {"###Assistant:", "- x", "a: b", "null", "~", "tab\tand\nline",
                                 "\"quoted\"", "{x}", "été"}) {
    const fs::path path = file("run_info:\n  test:\n    key: " + yaml_scalar(text) + "\n");
    EXPECT_EQ(read_run_info(path, "test").at("key"), text);
  }
}

TEST_F(RunConfigTest, SaysWhichValueWinsOnResumingAndWhy) {
  Command command;
  command.parse({"--layers", "9", "--lr", "0.002", "--recompute", "--batch-size", "16"});
  const auto notes = command.config.load_for_resume(
      file("layers: 4\nlr: 0.001\nbatch-size: 16\nschedule: constant\n"));
  EXPECT_EQ(command.layers, 4);    // the run's
  EXPECT_EQ(command.lr, 0.002);    // the flag's
  EXPECT_TRUE(command.recompute);  // the flag's, and nobody need know
  EXPECT_EQ(command.schedule, "constant");
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_EQ(notes[0], "--layers 9 is ignored, and the run's 4 kept: the weights have that shape");
  EXPECT_NE(notes[1].find("--lr 0.002 takes the place of the run's 0.001"), std::string::npos);
}

TEST_F(RunConfigTest, KeepsTheDefaultWhereARunRecordedNothing) {
  Command command;
  command.parse({"--layers", "9"});
  const auto notes = command.config.load_for_resume(file("lr: 0.001\n"));
  EXPECT_FALSE(command.layers);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0],
            "--layers 9 is ignored, and the run's (none) kept: the weights have that shape");
}

}  // namespace
}  // namespace mixtral
