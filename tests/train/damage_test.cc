// What damage and other people's files in a run's directory may not do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "base/temporary_name.h"
#include "tests/support/files.h"
#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// The metrics of steps 1 to `last`.
void write_metrics(const fs::path& path, int64_t last) {
  MetricsLog log(path, 0);
  for (int64_t step = 1; step <= last; ++step) log.append({.step = step, .tokens = 10 * step});
}

TEST(Metrics, ADamagedMiddleLosesOnlyWhatCannotBeRead) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "metrics.jsonl";
  write_metrics(path, 120);
  std::string text = read_file(path);
  text[text.find('\n') + 1] = '\x01';  // the first byte of line 2
  write_file(path, text);
  std::vector<std::string> notes;
  for (int time = 0; time < 2; ++time) {  // the second time there is nothing left to say
    MetricsLog log(path, 120, [&](std::string_view note) { notes.emplace_back(note); });
  }
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_THAT(notes[0], AllOf(HasSubstr("line 2"), HasSubstr("metrics.jsonl.damaged")));
  EXPECT_EQ(read_file(path.string() + ".damaged"), text);
  const auto lines = read_metrics(path);
  ASSERT_EQ(lines.size(), 119u);
  EXPECT_EQ(lines[0].step, 1);
  EXPECT_EQ(lines[1].step, 3);
  EXPECT_EQ(lines.back().step, 120);
}

TEST(Metrics, ATornLastLineIsNoDamage) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "metrics.jsonl";
  write_metrics(path, 3);
  std::ofstream(path, std::ios::app) << "{\"step\": 4, \"tok";
  MetricsLog log(path, 3, [](std::string_view note) { FAIL() << note; });
  EXPECT_EQ(read_metrics(path).size(), 3u);
  EXPECT_FALSE(fs::exists(path.string() + ".damaged"));
}

TEST(Metrics, ALinkIsNotWrittenThrough) {
  const Scratch scratch;
  const fs::path victim = scratch.path() / "victim", path = scratch.path() / "metrics.jsonl";
  write_file(victim, "mine\n");
  fs::create_symlink(victim, path);
  EXPECT_THAT(message_of([&] { MetricsLog(path, 0); }), HasSubstr("symbolic link"));
  EXPECT_EQ(read_file(victim), "mine\n");
}

TEST(RunDirectory, CleansAwayOnlyWhatARunMade) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  {
    Rig(path, small_settings(4), {.device = "ref"}).trainer->run();
  }
  const fs::path half = path / temporary_name("config.yaml");
  const fs::path half_checkpoint = path / "checkpoints" / temporary_name("step-00000004");
  write_file(half, "");
  fs::create_directories(half_checkpoint);
  const fs::path own[] = {path / "thesis.tmp-final.txt", path / "checkpoints" / "notes.txt",
                          path / "checkpoints" / ".tmp-mine"};
  for (const fs::path& file : own) write_file(file, "mine");
  {
    const RunDirectory run(path, RunDirectory::Open::continued);
    EXPECT_THAT(run.removed(), ::testing::UnorderedElementsAre(half, half_checkpoint));
  }
  {
    RunDirectory run(path, RunDirectory::Open::replace);
    EXPECT_TRUE(run.checkpoints().list().empty());
    EXPECT_FALSE(fs::exists(run.metrics_path()));
  }
  for (const fs::path& file : own) EXPECT_TRUE(fs::exists(file)) << file;
}

TEST(RunDirectory, TouchesNothingBehindALinkedCheckpointsFolder) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run", other = scratch.path() / "other";
  fs::create_directories(path);
  fs::create_directories(other / "step-00000001");
  fs::create_directories(other / temporary_name("theirs"));
  fs::create_directory_symlink(other, path / "checkpoints");
  for (const auto how : {RunDirectory::Open::continued, RunDirectory::Open::replace})
    EXPECT_THAT(message_of([&] { RunDirectory(path, how); }), HasSubstr("symbolic link"));
  EXPECT_EQ(std::distance(fs::directory_iterator(other), {}), 2);
}

TEST(RunDirectory, SizesInItsErrorsHaveUnitsThatFit) {
  const Scratch scratch;
  const RunDirectory run(scratch.path() / "run", RunDirectory::Open::fresh);
  EXPECT_THAT(
      message_of([&] { run.require_space(int64_t{1} << 60, 4); }),
      AllOf(HasSubstr("4 checkpoints of"), HasSubstr("GiB"), ::testing::Not(HasSubstr("0.0 GB"))));
}

TEST(TrainState, EveryFieldHasItsRange) {
  TrainState state;
  state.step = 10;
  state.tokens = 100;
  state.optimizer_steps = 10;
  state.best = TrainState::Best{.step = 5, .val_loss = 2};
  const std::string good = state.to_json();
  const auto parse = [](const std::string& text) {
    return message_of([&] { TrainState::parse(Json::parse(text, "state.json")); });
  };
  EXPECT_EQ(parse(good), "no error");
  const std::pair<std::string, std::string> changes[] = {
      {"\"tokens\": 100", "\"tokens\": -1"},
      {"\"tokens\": 100", "\"tokens\": 4611686018427387904"},
      {"\"skipped\": 0", "\"skipped\": 11"},
      {"\"skipped_in_row\": 0", "\"skipped_in_row\": 1"},
      {"\"evaluations_since_best\": 0", "\"evaluations_since_best\": -1"},
      {"\"steps\": 10", "\"steps\": 11"},
      {"\"steps\": 0", "\"steps\": 4611686018427387904"},
      {"\"step\": 5", "\"step\": 50"},
      {"\"loss\": \"0x0p+0\"", "\"loss\": \"nan\""},
      {"\"seconds\": 0.0", "\"seconds\": -1.0"},
  };
  for (const auto& [from, to] : changes) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from << " in " << good;
    text.replace(text.find(from), from.size(), to);
    EXPECT_THAT(parse(text), HasSubstr("state.json: ")) << to;
  }
}

}  // namespace
}  // namespace mixtral::testing
