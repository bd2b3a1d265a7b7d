#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "tests/support/fixtures.h"
#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

class Resume : public ::testing::TestWithParam<Rig::Options> {};

TEST_P(Resume, FromAnyStepEqualsTheUninterruptedRun) {
  if (!have_device(GetParam().device)) GTEST_SKIP() << "no GPU";
  constexpr int64_t kSteps = 14;
  TrainSettings settings = small_settings(kSteps);
  settings.optimizer.bf16_state = GetParam().seed == 8;
  const Scratch scratch;
  Rig whole(scratch.path() / "whole", settings, GetParam());
  const TrainResult expected = whole.trainer->run();
  EXPECT_EQ(expected.step, kSteps);
  // What is resumed also records its steps and reads their results late: nothing may differ.
  settings.record_steps = settings.read_late = true;
  for (const int64_t cut : {1, 4, 7, 10, 13}) {
    SCOPED_TRACE(cut);
    const fs::path path = scratch.path() / std::to_string(cut);
    {
      Rig first(path, settings, GetParam());
      first.stop_at = cut;
      const TrainResult result = first.trainer->run();
      EXPECT_EQ(result.reason, TrainResult::Reason::signal);
      EXPECT_EQ(result.signal, SIGTERM);
      EXPECT_EQ(result.step, cut);
    }
    Rig::Options options = GetParam();
    options.open = RunDirectory::Open::continued;
    options.seed = 99;  // other starting weights: they must not matter
    Rig second(path, settings, options);
    second.trainer->resume();
    EXPECT_EQ(second.trainer->state().step, cut);
    const TrainResult result = second.trainer->run();
    EXPECT_EQ(result.val_loss, expected.val_loss);
    EXPECT_EQ(result.test_loss, expected.test_loss);
    EXPECT_EQ(checkpoint_hashes(last_checkpoint(path)),
              checkpoint_hashes(last_checkpoint(scratch.path() / "whole")));
    EXPECT_EQ(timeless_metrics(path), timeless_metrics(scratch.path() / "whole"));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Backends, Resume,
    ::testing::Values(
        Rig::Options{.device = "ref"}, Rig::Options{.device = "cpu"},
        Rig::Options{.device = "cpu", .seed = 8}, Rig::Options{.device = "cuda"},
        Rig::Options{.device = "cuda", .weights = Dtype::bf16, .compute = Dtype::bf16, .seed = 8}));

TEST(Resume, FallsBackToTheNewestWholeCheckpoint) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  TrainSettings settings = small_settings(8);
  settings.eval_every = 0;
  {
    Rig(path, settings, {.device = "ref"}).trainer->run();
  }
  const fs::path damaged = path / "checkpoints" / "step-00000008" / "model.safetensors";
  {
    std::fstream file(damaged, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-5, std::ios::end);
    const char flipped = static_cast<char>(file.get() ^ 0x10);
    file.seekp(-5, std::ios::end);
    file.put(flipped);
  }
  Rig rig(path, settings, {.device = "ref", .open = RunDirectory::Open::continued});
  rig.trainer->resume();
  EXPECT_EQ(rig.trainer->state().step, 4);
  ASSERT_EQ(rig.observer.notes.size(), 2u);
  EXPECT_NE(rig.observer.notes[0].find(damaged.filename().string()), std::string::npos)
      << rig.observer.notes[0];
  EXPECT_NE(rig.observer.notes[0].find("checksum"), std::string::npos);
  EXPECT_NE(rig.observer.notes[1].find("step 4"), std::string::npos);
  EXPECT_EQ(rig.trainer->run().step, 8);
  EXPECT_EQ(rig.run.checkpoints().latest()->step, 8);
}

TEST(Resume, SaysWhenNothingIsWhole) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  {
    RunDirectory run(path, RunDirectory::Open::fresh);
  }
  Rig rig(path, small_settings(4), {.device = "ref", .open = RunDirectory::Open::continued});
  EXPECT_THROW(rig.trainer->resume(), Error);
}

TEST(Metrics, AreCutToTheStepThatIsResumed) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "metrics.jsonl";
  {
    MetricsLog log(path, 0);
    for (int64_t step = 1; step <= 6; ++step) log.append({.step = step, .tokens = 10 * step});
  }
  std::ofstream(path, std::ios::app) << "{\"step\": 7, \"tok";  // torn by a kill
  {
    MetricsLog log(path, 4);
    log.append({.step = 5, .tokens = 1234});
  }
  const auto lines = read_metrics(path);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[3].step, 4);
  EXPECT_EQ(lines[4].tokens, 1234);
}

TEST(RunDirectory, IsNotSharedNorOverwrittenUnasked) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  {
    RunDirectory run(path, RunDirectory::Open::fresh);
    EXPECT_THROW(RunDirectory(path, RunDirectory::Open::continued), Error);
  }
  EXPECT_NO_THROW(RunDirectory(path, RunDirectory::Open::fresh));  // nothing was trained yet
  {
    MetricsLog(path / "metrics.jsonl", 0).append({.step = 1});
  }
  EXPECT_THROW(RunDirectory(path, RunDirectory::Open::fresh), Error);
  EXPECT_NO_THROW(RunDirectory(path, RunDirectory::Open::replace));
  EXPECT_NO_THROW(RunDirectory(path, RunDirectory::Open::continued));
  EXPECT_THROW(RunDirectory(scratch.path() / "none", RunDirectory::Open::continued), Error);
}

}  // namespace
}  // namespace mixtral::testing
