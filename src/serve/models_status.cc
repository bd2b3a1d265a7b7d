// What models there are, and what they do.
#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "serve/models.h"

namespace mixtral::serve {
namespace {

namespace fs = std::filesystem;

/// Whether an entry of a folder is a model, by its name and files alone.
bool is_model(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored))
    return fs::exists(path / "config.json", ignored) || fs::exists(path / "params.json", ignored);
  return path.extension() == ".gguf" && fs::is_regular_file(path, ignored);
}

}  // namespace

std::vector<Models::Listed> Models::list() const {
  std::vector<Listed> all;
  std::set<std::string> known;
  {
    const std::lock_guard lock(mutex_);
    const auto put = [&](const std::string& id, const Entry& entry) {
      known.insert(id);
      all.push_back({.id = id,
                     .state = entry.state,
                     .pinned = entry.pinned,
                     .failure = entry.failure,
                     .service = entry.service});
    };
    put(first_, entries_.at(first_));
    for (const auto& [id, entry] : entries_)
      if (id != first_) put(id, entry);
  }
  if (!has_folder()) return all;
  std::set<std::string> others;
  std::error_code ignored;
  for (fs::directory_iterator at(options_.folder, ignored), end; !ignored && at != end;
       at.increment(ignored)) {
    std::string id = at->path().filename().string();
    if (!id.starts_with('.') && !known.contains(id) && is_model(at->path()))
      others.insert(std::move(id));
  }
  for (const std::string& id : others) all.push_back({.id = id});
  return all;
}

EngineCounts Models::counts() const {
  const std::lock_guard lock(mutex_);
  EngineCounts sum = past_;
  for (const auto& [id, entry] : entries_)
    if (entry.service) sum += entry.service->engine().counts();
  return sum;
}

void Models::drain() {
  std::vector<Waiting> waiting;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    for (auto& [id, entry] : entries_) {
      if (entry.service) entry.service->engine().refuse(unavailable("the server is shutting down"));
      for (Waiting& each : std::exchange(entry.waiting, {})) waiting.push_back(std::move(each));
    }
  }
  for (const Waiting& each : waiting) each.fail(unavailable("the server is shutting down"));
}

bool Models::idle() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::all_of(entries_, [](const auto& item) {
    return !item.second.service || item.second.service->engine().idle();
  });
}

bool Models::loading() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(entries_,
                             [](const auto& item) { return item.second.state == State::loading; });
}

void Models::end_all(const ApiError& error) {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_)
    if (entry.service) entry.service->engine().end_all(error);
}

}  // namespace mixtral::serve
