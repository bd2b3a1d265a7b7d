// Saving, when the system refuses: each call in turn that writes, syncs, renames, links or makes a
// folder fails once. This program's own definitions of those calls stand before the library's.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/temporary_name.h"
#include "io/manifest.h"
#include "tests/train/rig.h"

namespace {

/// Calls until the one that fails; negative: none does.
std::atomic<int> calls_left{-1};
std::atomic<int> reason{0};
thread_local const char* failed_call = nullptr;

/// Whether this call is the one.
bool fails(const char* name) {
  if (calls_left.load() < 0 || calls_left.fetch_sub(1) != 0) return false;
  failed_call = name;
  errno = reason;
  return true;
}

}  // namespace

extern "C" {
ssize_t write(int descriptor, const void* data, size_t size) {
  if (descriptor > 2 && fails("write")) return -1;
  return ::syscall(SYS_write, descriptor, data, size);
}
int fsync(int descriptor) {
  if (fails("fsync")) return -1;
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}
int rename(const char* from, const char* to) noexcept {
  if (fails("rename")) return -1;
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int mkdir(const char* path, mode_t mode) noexcept {
  if (fails("mkdir")) return -1;
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
}  // extern "C"

namespace mixtral::testing {
namespace {

TEST(Saving, LosesNothingWhicheverCallTheDiskRefuses) {
  TrainSettings settings = small_settings(8);
  settings.eval_every = 0;
  const Rig::Options continued{
      .device = "ref", .open = RunDirectory::Open::continued, .validation = false};
  std::vector<std::string> uninterrupted;
  {
    const Scratch scratch;
    Rig rig(scratch.path() / "run", settings, {.device = "ref", .validation = false});
    rig.trainer->run();
    uninterrupted = checkpoint_hashes(last_checkpoint(scratch.path() / "run"));
  }
  const Scratch begun;
  {
    Rig rig(begun.path() / "run", settings, {.device = "ref", .validation = false});
    rig.stop_at = 4;
    rig.trainer->run();
  }
  std::map<std::string, int> failures;
  bool finished = false;
  for (int call = 0; !finished; ++call) {
    ASSERT_LT(call, 1000);
    const Scratch scratch;
    const fs::path path = scratch.path() / "run";
    fs::copy(begun.path() / "run", path,
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    {
      Rig rig(path, settings, continued);
      rig.trainer->resume();
      failed_call = nullptr;
      reason = call % 2 ? EIO : ENOSPC;
      calls_left = call;
      try {
        rig.trainer->run();
        finished = calls_left >= 0;
      } catch (const std::exception& error) {
        // Said by name: which file or folder.
        EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
      }
      calls_left = -1;
    }
    if (failed_call) ++failures[failed_call];
    SCOPED_TRACE(std::string("call ") + std::to_string(call) + ": " +
                 (failed_call ? failed_call : "none"));
    for (const auto& entry : CheckpointStore::list_in(path / "checkpoints"))
      ASSERT_NO_THROW(verify_manifest(entry.path));
    CheckpointStore store(path / "checkpoints");
    const auto newest = store.newest_whole([](std::string_view note) { FAIL() << note; });
    ASSERT_TRUE(newest);
    EXPECT_GE(newest->step, 4);
    for (const auto& entry : fs::directory_iterator(path / "checkpoints"))
      EXPECT_FALSE(is_temporary_name(entry.path().filename().string()));
    Rig rig(path, settings, continued);
    rig.trainer->resume();
    EXPECT_EQ(rig.trainer->run().step, 8);
    EXPECT_EQ(checkpoint_hashes(last_checkpoint(path)), uninterrupted);
  }
  for (const char* name : {"write", "fsync", "rename", "mkdir"})
    EXPECT_GT(failures[name], 0) << name << " never failed";
}

}  // namespace
}  // namespace mixtral::testing
