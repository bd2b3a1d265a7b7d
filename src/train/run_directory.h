#pragma once

#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "train/checkpoint_store.h"

namespace mixtral {

/// A run's directory, open for writing by this process alone.
class RunDirectory {
 public:
  enum class Open {
    fresh,      // must not hold a run yet
    replace,    // what a run made there is removed, and nothing else
    continued,  // must hold a run
  };

  /// Throws Error when the directory is not as `how` wants it, when another process trains there,
  /// or when it cannot be created.
  RunDirectory(std::filesystem::path path, Open how);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path metrics_path() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path config_path() const { return path_ / "config.yaml"; }
  CheckpointStore& checkpoints() { return *checkpoints_; }
  /// What a killed process had left half written, and opening the directory removed.
  const std::vector<std::filesystem::path>& removed() const { return removed_; }

  /// Throws Error unless the disk has room for `checkpoints` more of `bytes` each.
  void require_space(int64_t bytes, int64_t checkpoints) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
  std::unique_ptr<CheckpointStore> checkpoints_;
  std::vector<std::filesystem::path> removed_;
};

/// Throws Error when what a run is to start from, which `flag` names, is a checkpoint of the run
/// that it is to replace.
void require_outside(const std::filesystem::path& replaced, std::string_view setting,
                     const std::filesystem::path& source);

}  // namespace mixtral
