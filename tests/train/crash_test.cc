// Saving, when the process is killed or the disk fails.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "base/file.h"
#include "base/temporary_name.h"
#include "io/manifest.h"
#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

/// Runs `body` in a child process, which ends with the status that it returns.
template <class Body>
pid_t in_child(const Body& body) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 99;
    try {
      status = body();
    } catch (const std::exception& problem) {
      std::fprintf(stderr, "child: %s\n", problem.what());
    }
    ::_exit(status);
  }
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

/// A file of `size` bytes that depend on the step.
void write_blob(const fs::path& path, int64_t step, size_t size) {
  std::string text(size, static_cast<char>('a' + step % 26));
  write_file(path, text);
}

TEST(Saving, LosesNothingOverAHundredKillsDuringSavesAndEndsInTheSameWeights) {
  constexpr uint64_t kSeed = 20261124;
  SCOPED_TRACE(kSeed);
  TrainSettings settings = small_settings(1'000'000);
  settings.save_every = 1;
  settings.eval_every = 0;
  settings.keep_last = 2;
  const Rig::Options fresh{.device = "ref", .validation = false};
  Rig::Options continued = fresh;
  continued.open = RunDirectory::Open::continued;
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  {
    Rig rig(path, settings, fresh);
    rig.stop_at = 1;
    rig.trainer->run();
  }
  // How long a step with its save takes: the kills come within that after a save has begun, or, one
  // in four, at any time from the start.
  const auto start = std::chrono::steady_clock::now();
  {
    Rig rig(path, settings, continued);
    rig.trainer->resume();
    rig.stop_at = 4;
    rig.trainer->run();
  }
  const auto span = std::chrono::duration_cast<std::chrono::microseconds>(
      (std::chrono::steady_clock::now() - start) / 3);
  const auto half_written = [&path] {
    int count = 0;
    std::error_code gone;  // entries may come and go under the iterator
    for (fs::directory_iterator it(path / "checkpoints", gone), end; !gone && it != end;
         it.increment(gone))
      count += is_temporary_name(it->path().filename().string());
    return count;
  };
  RandomStream random(kSeed);
  int64_t reached = 4;
  fs::path newest_checkpoint;
  int progressed = 0, during_a_save = 0;
  for (int kill = 0; during_a_save < 100; ++kill) {
    ASSERT_LT(kill, 1000) << "only " << during_a_save << " kills left a checkpoint half written";
    const pid_t child = in_child([&] {
      Rig rig(path, settings, continued);
      rig.trainer->resume();
      rig.trainer->run();
      return 1;
    });
    const bool any_time = kill % 4 == 0;
    for (int64_t i = 0; !any_time && half_written() == 0 && i < 1'000'000; ++i) {
    }
    const auto most = static_cast<uint64_t>(span.count()) * (any_time ? 6 : 1);
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(most)));
    ::kill(child, SIGKILL);
    const int status = wait_for(child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "kill " << kill << ": the child ended by itself";
    during_a_save += half_written();
    // Whatever stands under a checkpoint's name is whole.
    for (const auto& entry : CheckpointStore::list_in(path / "checkpoints"))
      ASSERT_NO_THROW(verify_manifest(entry.path)) << "kill " << kill;
    CheckpointStore store(path / "checkpoints");
    const auto newest = store.newest_whole([](std::string_view note) { FAIL() << note; });
    ASSERT_TRUE(newest) << "kill " << kill;
    ASSERT_GE(newest->step, reached) << "kill " << kill;
    progressed += newest->step > reached;
    reached = newest->step;
    newest_checkpoint = newest->path;
    for (const auto& entry : fs::directory_iterator(path / "checkpoints"))
      ASSERT_FALSE(is_temporary_name(entry.path().filename().string()));
  }
  EXPECT_GT(progressed, 10) << "the kills came too early to test anything";
  // The newest, from which a run resumes. A kill before `latest` is written leaves that one behind.
  const auto after_kills = checkpoint_hashes(newest_checkpoint);
  Rig uninterrupted(scratch.path() / "other", settings, fresh);
  uninterrupted.stop_at = reached;
  uninterrupted.trainer->run();
  EXPECT_EQ(after_kills, checkpoint_hashes(last_checkpoint(scratch.path() / "other")));
}

TEST(Saving, KeepsTheLastCheckpointWhenTheDiskIsFull) {
  const Scratch scratch;
  const fs::path path = scratch.path() / "run";
  TrainSettings settings = small_settings(12);
  settings.eval_every = 0;
  {
    Rig rig(path, settings, {.device = "ref"});
    rig.stop_at = 4;
    rig.trainer->run();
  }
  const pid_t child = in_child([&] {
    Rig rig(path, settings, {.device = "ref", .open = RunDirectory::Open::continued});
    rig.trainer->resume();
    // No file may grow beyond this: writes fail as on a full disk.
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{20'000, 20'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      rig.trainer->run();
      return 1;
    } catch (const Error& error) {
      const std::string text = error.what();
      std::fprintf(stderr, "%s\n", error.what());
      return text.find("step 8 could not be saved") != std::string::npos &&
                     text.find("step-00000004, is whole") != std::string::npos
                 ? 0
                 : 2;
    }
  });
  const int status = wait_for(child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  for (const auto& entry : fs::directory_iterator(path / "checkpoints"))
    EXPECT_FALSE(is_temporary_name(entry.path().filename().string()));
  Rig rig(path, settings, {.device = "ref", .open = RunDirectory::Open::continued});
  rig.trainer->resume();
  EXPECT_EQ(rig.trainer->state().step, 4);
  EXPECT_EQ(rig.trainer->run().step, 12);
}

TEST(Saving, LeavesNothingOfACheckpointWhoseWriterFails) {
  const Scratch scratch;
  CheckpointStore store(scratch.path() / "checkpoints");
  store.save(1, [](const fs::path& folder) {
    write_blob(folder / "weights", 1, 1000);
    return std::map<std::string, FileChecksum>{};
  });
  EXPECT_THROW(store.save(2,
                          [](const fs::path& folder) -> std::map<std::string, FileChecksum> {
                            write_blob(folder / "weights", 2, 1000);
                            throw Error("no space left on device");
                          }),
               Error);
  EXPECT_EQ(store.list().size(), 1u);
  EXPECT_EQ(store.latest()->step, 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(store.directory()), {}), 2);  // it, and `latest`
}

TEST(Saving, ReplacesACheckpointOfTheSameStep) {
  const Scratch scratch;
  CheckpointStore store(scratch.path() / "checkpoints");
  for (const int64_t content : {1, 2}) {
    store.save(7, [&](const fs::path& folder) {
      write_blob(folder / "weights", content, 100);
      return std::map<std::string, FileChecksum>{};
    });
  }
  EXPECT_EQ(read_file(store.latest()->path / "weights"), std::string(100, 'c'));
  EXPECT_EQ(std::distance(fs::directory_iterator(store.directory()), {}), 2);
}

TEST(Saving, ReadsPointersThatAreFiles) {
  const Scratch scratch;
  CheckpointStore store(scratch.path() / "checkpoints");
  for (const int64_t step : {1, 2}) {
    store.save(step, [&](const fs::path& folder) {
      write_blob(folder / "weights", step, 10);
      return std::map<std::string, FileChecksum>{};
    });
  }
  fs::remove(store.directory() / "latest");
  write_file(store.directory() / "latest", "step-00000001\n");
  EXPECT_EQ(store.latest()->step, 1);
  EXPECT_EQ(find_checkpoint(scratch.path())->filename(), "step-00000001");
  // A pointer to a checkpoint that is not there counts for nothing.
  write_file(store.directory() / "best", "../../etc\n");
  EXPECT_FALSE(store.best());
}

TEST(RunDirectory, RefusesToBeginWithoutRoomForTheCheckpoints) {
  const Scratch scratch;
  const RunDirectory run(scratch.path() / "run", RunDirectory::Open::fresh);
  EXPECT_NO_THROW(run.require_space(1000, 3));
  try {
    run.require_space(int64_t{1} << 50, 3);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("keep-last"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace mixtral::testing
