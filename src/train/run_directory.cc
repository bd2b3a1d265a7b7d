#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/advice.h"
#include "base/error.h"
#include "base/temporary_name.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// Removes what a run made, and nothing else.
void remove_run(const fs::path& run) {
  CheckpointStore::remove_all_in(run / "checkpoints");
  const fs::path events = run / "tensorboard";
  std::error_code error;
  if (fs::is_directory(fs::symlink_status(events, error))) {
    std::vector<fs::path> own;
    for (const auto& entry : fs::directory_iterator(events))
      if (entry.path().filename().string().starts_with("events.out.tfevents."))
        own.push_back(entry.path());
    for (const fs::path& path : own) fs::remove(path);
    fs::remove(events, error);  // unless something else is in it
  }
  for (const std::string_view name : {"metrics.jsonl", "loss.svg", "loss.png"})
    if (!fs::is_directory(fs::symlink_status(run / name, error))) fs::remove(run / name, error);
}

}  // namespace

RunDirectory::RunDirectory(fs::path path, Open how) : path_(std::move(path)) {
  const bool continuable = fs::exists(metrics_path()) || fs::exists(path_ / "checkpoints");
  const bool holds_run = fs::exists(metrics_path()) || find_checkpoint(path_).has_value();
  if (how == Open::continued && !continuable)
    throw Error(
        fmt::format("{} holds no run to resume: expected checkpoints/ and metrics.jsonl in it",
                    path_.string()));
  if (how == Open::fresh && holds_run)
    throw AdvisedError(
        fmt::format("{} already holds a run; continue it with ‹resume›, replace it with "
                    "‹overwrite›, or choose another ‹out›",
                    path_.string()));
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", path_.string(), error.message()));
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    throw Error(fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw AdvisedError(fmt::format(
        "another process is training in {}; wait for it, stop it, or choose another ‹out›",
        path_.string()));
  }
  try {
    if (how == Open::replace) remove_run(path_);
    removed_ = remove_temporaries(path_);
    checkpoints_ = std::make_unique<CheckpointStore>(path_ / "checkpoints");
    removed_.insert(removed_.end(), checkpoints_->removed().begin(), checkpoints_->removed().end());
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunDirectory::~RunDirectory() { ::close(lock_); }

void RunDirectory::require_space(int64_t bytes, int64_t count) const {
  std::error_code error;
  const auto space = fs::space(path_, error);
  const auto needed = static_cast<uintmax_t>(bytes) * static_cast<uintmax_t>(count);
  if (error || space.available >= needed) return;
  throw AdvisedError(
      fmt::format("{} has {} free, but {} checkpoints of {} each need {}; free some space, choose "
                  "another ‹out›, or keep fewer with ‹keep-last›",
                  path_.string(), format_bytes(static_cast<int64_t>(space.available)), count,
                  format_bytes(bytes), format_bytes(static_cast<int64_t>(needed))));
}

void require_outside(const fs::path& replaced, std::string_view setting, const fs::path& source) {
  const fs::path removed = fs::weakly_canonical(replaced / "checkpoints");
  const fs::path inner = fs::weakly_canonical(source);
  const auto [end, where] =
      std::mismatch(removed.begin(), removed.end(), inner.begin(), inner.end());
  if (end != removed.end()) return;
  throw AdvisedError(
      fmt::format("‹overwrite› would remove {}, which ‹{}› is to start from; choose another ‹out›",
                  source.string(), setting));
}

}  // namespace mixtral
