#include "cli/data_command.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

struct Result {
  int code = 0;
  std::string out;
};

class DataCommand : public ::testing::Test {
 protected:
  DataCommand()
      : root_(fs::temp_directory_path() / ("data_command_" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
  }
  ~DataCommand() override { fs::remove_all(root_); }

  /// Runs the command as the program does, and gives its exit code and what it prints.
  static Result run(std::vector<std::string> arguments) {
    cli::App app("test", "mixtral");
    add_data_command(app);
    arguments.insert(arguments.begin(), "data");
    std::reverse(arguments.begin(), arguments.end());
    Result result;
    ::testing::internal::CaptureStdout();
    try {
      app.parse(arguments);
    } catch (const ExitStatus& status) {
      result.code = status.code;
    } catch (const cli::ParseError&) {
      result.code = 2;
    } catch (const UsageError&) {
      result.code = 2;
    } catch (const Error&) {
      result.code = 1;
    }
    std::fflush(stdout);
    result.out = ::testing::internal::GetCapturedStdout();
    return result;
  }

  /// What `data stories` says that it wrote.
  nlohmann::json stories(std::vector<std::string> flags) const {
    flags.insert(flags.begin(), "stories");
    flags.insert(flags.end(), {"--quiet", "--json"});
    const Result made = run(flags);
    EXPECT_EQ(made.code, 0);
    return nlohmann::json::parse(made.out);
  }

  const fs::path root_;
};

TEST_F(DataCommand, StoriesAreWrittenAndPassTheCheck) {
  const std::string out = (root_ / "stories").string();
  const auto summary = stories({"--out", out, "--size", "200KB", "--questions", "100",
                                "--preferences", "40", "--form", "completion"});
  EXPECT_GT(summary["train"]["stories"], 100);
  EXPECT_EQ(summary["test"]["questions"], 5);
  EXPECT_GT(summary["chance"]["guess"], 0.2);
  for (const char* part : {"pretrain_data", "finetune_data", "preference_data"}) {
    const Result check =
        run({"check", "--data", out + "/" + part, "--tokenizer", "bytes", "--quiet", "--json"});
    ASSERT_EQ(check.code, 0) << part;
    const auto report = nlohmann::json::parse(check.out);
    EXPECT_EQ(report["splits"].size(), 3u);
    EXPECT_EQ(report["problem_count"], 0);
    EXPECT_EQ(report["splits"][0]["sample"]["bos"], 1);
    EXPECT_EQ(report["splits"][1]["also_in_train"], 0);
  }
  EXPECT_EQ(run({"check", "--data", out, "--quiet"}).code, 1);  // names the folders inside
}

TEST_F(DataCommand, StoriesCountConversationsAndTheirQuestions) {
  const std::string out = (root_ / "turns").string();
  const auto summary = stories(
      {"--out", out, "--size", "50KB", "--questions", "40", "--preferences", "0", "--turns", "3"});
  int64_t lines = 0, questions = 0;
  std::istringstream file(read_file(root_ / "turns/finetune_data/train.jsonl"));
  for (std::string line; std::getline(file, line); ++lines)
    questions += static_cast<int64_t>(nlohmann::json::parse(line)["messages"].size()) / 2;
  EXPECT_GT(questions, 80);
  EXPECT_EQ(lines, 40);
  EXPECT_EQ(summary["train"]["conversations"], lines);
  EXPECT_EQ(summary["train"]["questions"], questions);
  EXPECT_EQ(summary["test"]["conversations"], 0);
  EXPECT_EQ(summary["test"]["questions"], 2);
}

TEST_F(DataCommand, CheckFindsBadLinesAndFixesThem) {
  const std::string bad = (root_ / "bad.jsonl").string(), good = (root_ / "good.jsonl").string();
  write_file(bad, "{\"text\":\"one\"}\r\n{\"txt\":\"two\"}\n{\"text\":\"three\"}\n");
  Result result = run({"check", "--data", bad, "--quiet", "--json"});
  EXPECT_EQ(result.code, 1);
  const auto report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["problem_count"], 2);
  EXPECT_EQ(report["splits"][0]["problems"][0]["line"], 1);
  EXPECT_EQ(report["splits"][0]["problems"][1]["line"], 2);
  result = run({"check", "--data", bad, "--quiet"});
  EXPECT_NE(result.out.find(bad + ":1: "), std::string::npos);
  EXPECT_NE(result.out.find(bad + ":2: "), std::string::npos);
  EXPECT_EQ(run({"check", "--data", bad, "--fix", good, "--quiet"}).code, 0);
  EXPECT_EQ(read_file(good), "{\"text\":\"one\"}\n{\"text\":\"three\"}\n");
  EXPECT_EQ(run({"check", "--data", good, "--quiet"}).code, 0);
}

TEST_F(DataCommand, CheckEstimatesEpochsAndTime) {
  const std::string path = (root_ / "a.jsonl").string();
  std::string rows;
  for (int i = 0; i < 100; ++i) rows += "{\"input_ids\":[1,2,3,4,5,6,7,8,9,10]}\n";
  write_file(path, rows);
  const Result result =
      run({"check", "--data", path, "--context", "10", "--batch-size", "5", "--iters", "40",
           "--tokens-per-second", "100", "--vocab-size", "11", "--quiet", "--json"});
  ASSERT_EQ(result.code, 0);
  const auto report = nlohmann::json::parse(result.out);
  EXPECT_DOUBLE_EQ(report["tokens_per_step"], 50);
  // A tenth of the rows is for validation.
  EXPECT_DOUBLE_EQ(report["epochs"], 200.0 / 90);
  EXPECT_DOUBLE_EQ(report["seconds"], 20);
  EXPECT_EQ(report["splits"][0]["duplicates"], 89);
  EXPECT_EQ(run({"check", "--data", path, "--vocab-size", "10", "--quiet"}).code, 1);
}

TEST_F(DataCommand, ImportMakesSplitsThatPassTheCheck) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "Paragraph " + std::to_string(i) + " of the book.\n\n";
  write_file(root_ / "book.txt", text);
  const std::string out = (root_ / "out").string();
  const Result made = run({"import", (root_ / "book.txt").string(), "--out", out, "--max-chars",
                           "500", "--quiet", "--json"});
  ASSERT_EQ(made.code, 0);
  const auto summary = nlohmann::json::parse(made.out);
  EXPECT_GT(summary["train"]["documents"], 5);
  EXPECT_GE(summary["val"]["documents"], 1);
  EXPECT_EQ(run({"check", "--data", out, "--quiet"}).code, 0);
}

TEST_F(DataCommand, WrongUsageIsRefused) {
  const std::string out = root_.string();
  for (const auto& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"stories"},
                                             {"stories", "--out", out, "--size", "many"},
                                             {"stories", "--out", out, "--size", "1"},
                                             {"stories", "--out", out, "--questions", "-1"},
                                             {"stories", "--out", out, "--form", "poem"},
                                             {"import", "--out", out},
                                             {"check"},
                                             {"check", "--data", out, "--pack", "maybe"},
                                             {"check", "--data", out, "--chat-template", "none"}}) {
    EXPECT_EQ(run(arguments).code, 2) << ::testing::PrintToString(arguments);
  }
  EXPECT_EQ(run({"check", "--data", out + "/absent", "--quiet"}).code, 1);
}

}  // namespace
}  // namespace mixtral
