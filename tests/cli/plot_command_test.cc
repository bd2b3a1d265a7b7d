// The plot command, and what training says of dead experts, from the command line on.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "cli/common.h"
#include "cli/train_progress.h"
#include "tests/support/command.h"
#include "train/metrics.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

class Plots : public ::testing::Test {
 protected:
  Plots() {
    std::string pattern = (fs::temp_directory_path() / "mixtral-plot-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    for (const char* name : {"a", "b"}) {
      fs::create_directory(folder_ / name);
      MetricsLog log(folder_ / name / "metrics.jsonl", 0);
      for (int64_t step = 1; step <= 30; ++step) log.append(line_at(step));
    }
  }
  ~Plots() override { fs::remove_all(folder_); }

  static MetricsLine line_at(int64_t step) {
    MetricsLine line;
    line.step = step;
    line.train_loss = 3 - 0.05 * static_cast<double>(step);
    if (step % 10 == 0) line.val_loss = line.train_loss + 0.2;
    line.router = RouterFigures{.load = {{0.7, 0.3, 0}}, .entropy = {0.5}, .dead = 1};
    return line;
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  fs::path folder_;
};

TEST_F(Plots, AreWrittenForOneRunAndForSeveral) {
  ASSERT_EQ(run_command({"plot", path("a")}).code, 0);
  EXPECT_NE(read_file(folder_ / "a" / "plots.svg").find("<svg"), std::string::npos);
  ASSERT_EQ(run_command({"plot", path("a"), path("b"), "-o", path("ab.png")}).code, 0);
  EXPECT_EQ(read_file(folder_ / "ab.png").substr(1, 3), "PNG");
}

TEST_F(Plots, ShowThePanelsThatAreAskedFor) {
  const Outcome o = run_command({"plot", path("a"), "--ascii", "--panels", "loss,load"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.out.find("validation 1.7"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("even: 33.33%"), std::string::npos);
  EXPECT_EQ(o.out.find("Learning rate"), std::string::npos);
  EXPECT_EQ(run_command({"plot", path("a"), "--panels", "looss"}).code, 2);
}

TEST_F(Plots, SayWhatIsMissing) {
  const Outcome nowhere = run_command({"plot", path("nowhere")});
  EXPECT_EQ(nowhere.code, 1);
  EXPECT_NE(nowhere.err.find("metrics.jsonl"), std::string::npos) << nowhere.err;
  EXPECT_EQ(run_command({"plot", path("a"), "-o", path("x.gif")}).code, 2);
}

TEST_F(Plots, TrainingWarnsOfDeadExpertsOnce) {
  CommonOptions common;
  ::testing::internal::CaptureStderr();
  {
    TrainProgress progress(common, folder_ / "a");
    for (int64_t step = 1; step <= 30; ++step)
      progress.on_line(line_at(step), {.step = step, .iterations = 30});
  }
  const std::string said = ::testing::internal::GetCapturedStderr();
  const std::string warning = "expert 2 of layer 0 since step 1;";
  const size_t first = said.find(warning);
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find(warning, first + 1), std::string::npos);
}

}  // namespace
}  // namespace mixtral
