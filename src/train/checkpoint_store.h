#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checksum.h"

namespace mixtral {

/// Writes a checkpoint's files into a fresh directory. Returns the checksums it already knows.
using CheckpointWriter =
    std::function<std::map<std::string, FileChecksum>(const std::filesystem::path& directory)>;

/// The checkpoints of a run: directories step-00000300, each with a manifest of checksums, and the
/// pointers `latest` and `best` (symbolic links; small files with the name where the file system
/// has no links). A checkpoint is written under a temporary name, synced and renamed, so that at
/// every instant what stands under a checkpoint's name is whole.
class CheckpointStore {
 public:
  struct Entry {
    int64_t step = 0;
    std::filesystem::path path;
  };

  /// Opens (and creates) the directory, and removes what a killed save left behind. One process at
  /// a time may do so: see RunDirectory's lock. Throws Error when the directory is a link.
  explicit CheckpointStore(std::filesystem::path directory);

  const std::filesystem::path& directory() const { return directory_; }
  /// What a killed save had left, and the constructor removed.
  const std::vector<std::filesystem::path>& removed() const { return removed_; }

  /// Removes from a directory all checkpoints, also those set aside, and the pointers to them; and
  /// the directory when nothing else is in it. Throws Error when it is a link.
  static void remove_all_in(const std::filesystem::path& directory);

  /// In order of their steps.
  std::vector<Entry> list() const { return list_in(directory_); }
  /// The same, of a directory that is not opened.
  static std::vector<Entry> list_in(const std::filesystem::path& directory);
  std::optional<Entry> latest() const { return pointed("latest"); }
  std::optional<Entry> best() const { return pointed("best"); }

  /// Writes a checkpoint and points `latest` to it. On failure (disk full, say) nothing is left of
  /// it, the earlier ones stay, and the Error says what failed and which checkpoint is the last.
  Entry save(int64_t step, const CheckpointWriter& write);
  void mark_latest(int64_t step) { point("latest", step); }
  void mark_best(int64_t step) { point("best", step); }
  /// Removes all but the last `keep` checkpoints, the best one, and those that `latest` names.
  void prune(int64_t keep);
  /// Renames checkpoints of steps after `step` to "damaged-...": a run that continues from `step`
  /// passed over them, and makes its own. Pointers to them go.
  void set_aside_after(int64_t step);

  /// The newest checkpoint whose files all match their checksums. `note` is told of each damaged
  /// one that is passed over, with the file's name.
  std::optional<Entry> newest_whole(const std::function<void(std::string_view)>& note) const;

 private:
  std::filesystem::path path_of(int64_t step) const;
  std::optional<Entry> pointed(std::string_view pointer) const;
  void point(std::string_view pointer, int64_t step);
  void remove(const Entry& entry);

  std::filesystem::path directory_;
  std::vector<std::filesystem::path> removed_;
};

/// Which checkpoint of a run to use, without opening the run for writing: the one `best` points to,
/// else `latest`, else the one with the highest step. `run` may also be the checkpoints directory.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& run);

}  // namespace mixtral
