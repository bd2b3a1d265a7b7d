#include "train/checkpoint_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "base/temporary_name.h"
#include "io/manifest.h"
#include "train/checkpoint_check.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kAside = "damaged-";
constexpr std::string_view kPointers[] = {"latest", "best"};

std::string name_of(int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || name.size() < 8 || step < 0)
    return std::nullopt;
  return step;
}

std::optional<CheckpointStore::Entry> follow(const fs::path& directory, std::string_view pointer) {
  const fs::path path = directory / pointer;
  std::error_code error;
  std::string name;
  if (fs::is_symlink(path, error)) {
    name = fs::read_symlink(path, error).filename().string();
  } else if (fs::is_regular_file(path, error)) {
    name = read_file(path, 4096);
    while (!name.empty() && (name.back() == '\n' || name.back() == '\r')) name.pop_back();
  }
  const auto step = step_of(name);
  if (!step || !fs::is_directory(fs::symlink_status(directory / name, error))) return std::nullopt;
  return CheckpointStore::Entry{*step, directory / name};
}

/// A directory that is gone at the end of the scope.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    if (!fs::create_directory(path_, error))
      throw Error(fmt::format("cannot create {}: {}", path_.string(), error.message()));
  }
  ~TemporaryDirectory() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// What is saved and removed in a linked directory would be so outside the run.
void refuse_link(const fs::path& directory) {
  std::error_code error;
  if (fs::is_symlink(directory, error))
    throw Error(
        fmt::format("{} is a symbolic link, and checkpoints are kept only in the run's own "
                    "directory; link the whole run's directory instead",
                    directory.string()));
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path directory) : directory_(std::move(directory)) {
  refuse_link(directory_);
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", directory_.string(), error.message()));
  removed_ = remove_temporaries(directory_);
}

void CheckpointStore::remove_all_in(const fs::path& directory) {
  refuse_link(directory);
  std::error_code error;
  if (!fs::is_directory(directory, error)) return;
  std::vector<fs::path> own;
  for (const auto& entry : fs::directory_iterator(directory)) {
    std::string name = entry.path().filename().string();
    if (name.starts_with(kAside)) name.erase(0, kAside.size());
    if (step_of(name) || std::ranges::count(kPointers, name) > 0 || is_temporary_name(name))
      own.push_back(entry.path());
  }
  for (const fs::path& path : own) fs::remove_all(path);
  fs::remove(directory, error);  // unless something else is in it
}

fs::path CheckpointStore::path_of(int64_t step) const { return directory_ / name_of(step); }

std::vector<CheckpointStore::Entry> CheckpointStore::list_in(const fs::path& directory) {
  std::vector<Entry> entries;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory() && !entry.is_symlink())
      entries.push_back({*step, entry.path()});
  }
  std::ranges::sort(entries, {}, &Entry::step);
  return entries;
}

std::optional<CheckpointStore::Entry> CheckpointStore::pointed(std::string_view pointer) const {
  return follow(directory_, pointer);
}

void CheckpointStore::point(std::string_view pointer, int64_t step) {
  const fs::path path = directory_ / pointer;
  const fs::path temporary = directory_ / temporary_name(pointer);
  std::error_code error;
  fs::create_directory_symlink(name_of(step), temporary, error);
  if (error) {
    write_file(path, name_of(step) + "\n");
    return;
  }
  fs::rename(temporary, path, error);
  if (error) throw Error(fmt::format("cannot replace {}: {}", path.string(), error.message()));
  sync_directory(directory_);
}

CheckpointStore::Entry CheckpointStore::save(int64_t step, const CheckpointWriter& write) {
  try {
    const TemporaryDirectory temporary(directory_ / temporary_name(name_of(step)));
    const auto known = write(temporary.path());
    Manifest manifest;
    for (const auto& [name, sum] : known) manifest.add(name, sum);
    for (const auto& entry : fs::recursive_directory_iterator(temporary.path())) {
      const std::string name = entry.path().lexically_relative(temporary.path()).generic_string();
      if (entry.is_regular_file() && !known.contains(name))
        manifest.add(name, checksum_file(entry.path()));
    }
    manifest.save(temporary.path());
    sync_tree(temporary.path());
    put_in_place(temporary.path(), path_of(step));
    sync_directory(directory_);
    point("latest", step);
    return {step, path_of(step)};
  } catch (const std::exception& problem) {
    const auto last = latest();
    throw AdvisedError(fmt::format(
        "the checkpoint of step {} could not be saved: {}; {}", step, problem.what(),
        last ? fmt::format("the last one, {}, is whole: make room and continue from it with "
                           "‹resume›",
                           last->path.string())
             : std::string("there is no earlier one: make room and start again")));
  }
}

void CheckpointStore::remove(const Entry& entry) {
  // Renamed first, so that what is half removed no longer looks like a checkpoint.
  const fs::path aside = directory_ / temporary_name(entry.path.filename().string());
  std::error_code error;
  fs::rename(entry.path, aside, error);
  if (!error) fs::remove_all(aside, error);
  if (error)
    throw Error(fmt::format("cannot remove the old checkpoint {}: {}", entry.path.string(),
                            error.message()));
}

void CheckpointStore::prune(int64_t keep) {
  const auto entries = list();
  const auto last = latest(), top = best();
  const auto count = static_cast<int64_t>(entries.size());
  for (int64_t i = 0; i < count - std::max<int64_t>(keep, 1); ++i) {
    const Entry& entry = entries[static_cast<size_t>(i)];
    if ((last && last->step == entry.step) || (top && top->step == entry.step)) continue;
    remove(entry);
  }
}

void CheckpointStore::set_aside_after(int64_t step) {
  std::error_code error;
  for (const Entry& entry : list()) {
    if (entry.step <= step) continue;
    const fs::path aside = directory_ / (std::string(kAside) + entry.path.filename().string());
    fs::remove_all(aside, error);
    fs::rename(entry.path, aside, error);
    if (error)
      throw Error(fmt::format("cannot rename the damaged checkpoint {}: {}", entry.path.string(),
                              error.message()));
  }
  for (const std::string_view pointer : kPointers)
    if (!pointed(pointer)) fs::remove(directory_ / pointer, error);
}

std::optional<CheckpointStore::Entry> CheckpointStore::newest_whole(
    const std::function<void(std::string_view)>& note) const {
  auto entries = list();
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    try {
      verify_checkpoint(entry->path, CheckpointUse::resume);
      return *entry;
    } catch (const Error& problem) {
      note(fmt::format("the checkpoint {} is passed over: {}", entry->path.string(),
                       problem.what()));
    }
  }
  return std::nullopt;
}

std::optional<fs::path> find_checkpoint(const fs::path& run) {
  for (const fs::path& directory : {run / "checkpoints", run}) {
    for (const std::string_view pointer : {"best", "latest"})
      if (const auto entry = follow(directory, pointer)) return entry->path;
    if (const auto entries = CheckpointStore::list_in(directory); !entries.empty())
      return entries.back().path;
  }
  return std::nullopt;
}

}  // namespace mixtral
