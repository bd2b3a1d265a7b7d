#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// Removes files that a killed process left half written (base/file.h's temporary names).
void remove_leftovers(const fs::path& directory) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.is_regular_file() &&
        entry.path().filename().string().find(".tmp-") != std::string::npos)
      leftovers.push_back(entry.path());
  for (const auto& path : leftovers) fs::remove(path);
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
    throw Error(
        fmt::format("{} already holds a run; continue it with --resume, replace it with "
                    "--overwrite, or choose another --out",
                    path_.string()));
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", path_.string(), error.message()));
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    throw Error(fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw Error(fmt::format(
        "another process is training in {}; wait for it, stop it, or choose another --out",
        path_.string()));
  }
  try {
    if (how == Open::replace) {
      fs::remove_all(path_ / "checkpoints");
      fs::remove_all(path_ / "tensorboard");
      for (const fs::path& file : {metrics_path(), path_ / "loss.svg", path_ / "loss.png"})
        fs::remove(file);
    }
    remove_leftovers(path_);
    checkpoints_ = std::make_unique<CheckpointStore>(path_ / "checkpoints");
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
  throw Error(
      fmt::format("{} has {:.1f} GB free, but {} checkpoints of {:.1f} GB each need {:.1f} GB; "
                  "free some space, "
                  "choose another --out, or keep fewer with --keep-last",
                  path_.string(), static_cast<double>(space.available) / 1e9, count,
                  static_cast<double>(bytes) / 1e9, static_cast<double>(needed) / 1e9));
}

void require_outside(const fs::path& replaced, std::string_view flag, const fs::path& source) {
  const fs::path removed = fs::weakly_canonical(replaced / "checkpoints");
  const fs::path inner = fs::weakly_canonical(source);
  const auto [end, where] =
      std::mismatch(removed.begin(), removed.end(), inner.begin(), inner.end());
  if (end != removed.end()) return;
  throw Error(
      fmt::format("--overwrite would remove {}, which {} is to start from; choose another --out",
                  source.string(), flag));
}

}  // namespace mixtral
