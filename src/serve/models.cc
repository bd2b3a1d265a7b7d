#include "serve/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/printable.h"

namespace mixtral::serve {
namespace {

namespace fs = std::filesystem;

constexpr auto kLook = std::chrono::milliseconds(200);  // how often idle models are looked for
constexpr auto kEnd = std::chrono::seconds(5);          // after which what was ended is gone

ApiError not_loaded(const std::string& id) {
  return {404, fmt::format("the model {} is not loaded", printable(id)), "model",
          "model_not_loaded"};
}

}  // namespace

Models::Models(const ModelSource& first, Options options, const ModelSource::Note& note)
    : options_(std::move(options)), note_(note), first_source_(first) {
  Service::Options how = options_.service;
  how.most_memory = options_.budget;
  auto service = std::make_shared<Service>(first, options_.open, how, note);
  first_ = service->id();
  Entry& entry = entries_[first_];
  entry.state = State::loaded;
  entry.service = std::move(service);
  entry.adapters.insert(how.adapters.begin(), how.adapters.end());
  entry.last_used = Clock::now();
  thread_ = std::thread([this] { work(); });
}

Models::~Models() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Models::work() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (tasks_.empty()) changed_.wait_for(lock, kLook);
    if (stopping_) break;
    std::function<void()> task;
    if (!tasks_.empty()) {
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    lock.unlock();
    if (task)
      task();
    else
      unload_idle();
    task = nullptr;
    lock.lock();
  }
}

void Models::add_task(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || draining_) throw unavailable("the server is shutting down");
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

std::string Models::base_of(std::string_view name) const {
  if (name.empty()) return first_;
  // A base's own name may have a colon: the longest entry that fits is meant.
  std::string best;
  for (const auto& [id, entry] : entries_) {
    const bool fits =
        name == id || (name.starts_with(id) && name.size() > id.size() && name[id.size()] == ':');
    if (fits && id.size() > best.size()) best = id;
  }
  return best;
}

void Models::use(std::string_view name, const Use& use, const Fail& fail) {
  std::shared_ptr<Service> service;
  std::string id;
  {
    const std::lock_guard lock(mutex_);
    id = base_of(name);
    const auto found = entries_.find(id);
    if (found == entries_.end()) throw unknown_model(name);
    Entry& entry = found->second;
    entry.last_used = Clock::now();
    if (entry.state == State::loaded) {
      service = entry.service;
    } else if (entry.state == State::unloading && !entry.was_idle) {
      throw unavailable(fmt::format("the model {} is being unloaded", printable(id)));
    } else if (entry.state == State::unloaded && !entry.was_idle) {
      throw not_loaded(id);
    } else {
      if (draining_ || stopping_) throw unavailable("the server is shutting down");
      if (std::ssize(entry.waiting) >= options_.waiting) throw too_many(std::ssize(entry.waiting));
      entry.waiting.push_back({use, fail});
      if (entry.state == State::unloaded) {
        entry.state = State::loading;
        tasks_.emplace_back([this, id] { load_now(id); });
      }
    }
  }
  if (service)
    use(service);
  else
    changed_.notify_all();
}

std::shared_ptr<Service> Models::loaded(std::string_view name) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(base_of(name));
  if (found == entries_.end()) throw unknown_model(name);
  if (found->second.state != State::loaded) throw not_loaded(found->first);
  found->second.last_used = Clock::now();
  return found->second.service;
}

std::filesystem::path Models::path_of(const std::string& entry) const {
  if (!has_folder())
    throw ApiError(403, "this server was started without a folder of models to load from");
  const bool plain = !entry.empty() && entry.front() != '.' && entry.size() <= 255 &&
                     entry.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain)
    throw ApiError(400, fmt::format("expected the name of an entry of the server's folder, found "
                                    "{}",
                                    printable(entry)));
  std::error_code ignored;
  fs::path path = options_.folder / entry;
  if (!fs::exists(path, ignored)) throw unknown_model(entry);
  return path;
}

void Models::load(const std::string& id, bool pinned, Done done) {
  if (id != first_) (void)path_of(id);
  add_task([this, id, pinned, done = std::move(done)] {
    {
      const std::lock_guard lock(mutex_);
      Entry& entry = entries_[id];
      entry.pinned = pinned;
      if (entry.state == State::unloaded) entry.state = State::loading;
    }
    load_now(id);
    std::string failure;
    {
      const std::lock_guard lock(mutex_);
      failure = entries_.at(id).failure;
    }
    const ApiError error(400, failure, "model");
    done(failure.empty() ? nullptr : &error);
  });
}

/// Opens an entry that says it is loading, and tells who waits.
void Models::load_now(const std::string& id) {
  Service::Options how = options_.service;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(id);
    entry.failure.clear();
    if (entry.state == State::loaded) return;
    how.most_memory = memory_left();
    how.adapters.assign(entry.adapters.begin(), entry.adapters.end());
  }
  std::shared_ptr<Service> service;
  std::optional<ApiError> error;
  try {
    const ModelSource source =
        id == first_ ? first_source_ : ModelSource::resolve({.model = path_of(id).string()});
    OpenOptions open = options_.open;
    if (id != first_) {
      open.draft_model.clear();  // it fits the first model's vocabulary
      how.name = id;
      how.context = std::min(options_.most_context, source.config().max_positions);
    }
    service = std::make_shared<Service>(source, open, how, ModelSource::Note());
  } catch (...) {
    error = current_error();
  }
  std::vector<Waiting> waiting;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(id);
    entry.state = service ? State::loaded : State::unloaded;
    entry.service = service;
    entry.was_idle = false;
    entry.last_used = Clock::now();
    if (error) entry.failure = error->what();
    waiting = std::exchange(entry.waiting, {});
  }
  if (note_)
    note_(fmt::format("{} {}", printable(id), service ? "is loaded" : "could not be loaded"));
  tell_waiting(waiting, service, error ? &*error : nullptr);
}

void Models::tell_waiting(const std::vector<Waiting>& waiting,
                          const std::shared_ptr<Service>& service, const ApiError* error) {
  for (const Waiting& each : waiting) try {
      if (error != nullptr)
        each.fail(ApiError(503, fmt::format("the model could not be loaded: {}", error->what())));
      else
        each.use(service);
    } catch (...) {
      each.fail(current_error());
    }
}

void Models::unload(const std::string& id, Done done) {
  (void)service_of(id);
  add_task([this, id, done = std::move(done)] {
    unload_now(id, false);
    done(nullptr);
  });
}

/// What is under way may end; then the memory is given back.
void Models::unload_now(const std::string& id, bool for_idling) {
  std::shared_ptr<Service> service;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(id);
    if (entry.state != State::loaded) return;
    if (for_idling && (!entry.service->engine().idle() || is_in_use(entry))) return;
    entry.state = State::unloading;
    entry.was_idle = for_idling;
    service = std::move(entry.service);
  }
  EngineThread& engine = service->engine();
  engine.refuse(unavailable(fmt::format("the model {} is being unloaded", printable(id))));
  const auto wait_for = [&](Clock::duration time) {
    const auto end = Clock::now() + time;
    while (Clock::now() < end && !engine.idle()) {
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  };
  wait_for(options_.grace);
  engine.end_all(unavailable(fmt::format("the model {} was unloaded", printable(id))));
  wait_for(kEnd);
  {
    const std::lock_guard lock(mutex_);
    past_ += engine.counts().totals();
  }
  // Whoever still holds it is about to let go: the memory is free when this says so.
  const std::weak_ptr<Service> last = service;
  service.reset();
  for (const auto end = Clock::now() + kEnd; !last.expired() && Clock::now() < end;)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(id);
    entry.state = State::unloaded;
    if (!entry.waiting.empty() && !stopping_) {
      entry.state = State::loading;
      tasks_.emplace_back([this, id] { load_now(id); });
    }
  }
  if (note_) note_(fmt::format("{} is unloaded", printable(id)));
}

void Models::unload_idle() {
  if (options_.idle.count() <= 0) return;
  std::vector<std::string> idle;
  {
    const std::lock_guard lock(mutex_);
    for (auto& [id, entry] : entries_) {
      if (entry.state != State::loaded) continue;
      if (!entry.service->engine().idle()) entry.last_used = Clock::now();
      if (!entry.pinned && !is_in_use(entry)) idle.push_back(id);
    }
  }
  for (const std::string& id : idle) unload_now(id, true);
}

std::shared_ptr<Service> Models::service_of(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) throw unknown_model(id);
  if (found->second.state != State::loaded) throw not_loaded(found->first);
  return found->second.service;
}

void Models::load_adapter(const std::string& base, const std::string& name,
                          const std::string& entry, Done done) {
  const fs::path path = path_of(entry);
  (void)service_of(base);
  add_task([this, base, name, path, done = std::move(done)] {
    std::optional<ApiError> error;
    try {
      std::optional<int64_t> room;
      {
        const std::lock_guard lock(mutex_);
        room = memory_left();
      }
      (void)service_of(base)->load_adapter(name, path.string(), room);
      const std::lock_guard lock(mutex_);
      entries_.at(base).adapters[name] = path.string();
    } catch (...) {
      error = current_error();
    }
    done(error ? &*error : nullptr);
  });
}

void Models::unload_adapter(const std::string& base, const std::string& name, Done done) {
  (void)service_of(base);
  add_task([this, base, name, done = std::move(done)] {
    std::optional<ApiError> error;
    try {
      service_of(base)->unload_adapter(name);
      const std::lock_guard lock(mutex_);
      entries_.at(base).adapters.erase(name);
    } catch (...) {
      error = current_error();
    }
    done(error ? &*error : nullptr);
  });
}

void Models::run(const std::string& id, std::function<void(Service&)> work, Fail fail) {
  (void)service_of(id);
  add_task([this, id, work = std::move(work), fail = std::move(fail)] {
    try {
      work(*service_of(id));
    } catch (...) {
      fail(current_error());
    }
  });
}

/// With the mutex held.
std::optional<int64_t> Models::memory_left() const {
  if (!options_.budget) return std::nullopt;
  int64_t left = *options_.budget;
  for (const auto& [id, entry] : entries_)
    if (entry.service) left -= entry.service->bytes();
  return std::max<int64_t>(left, 0);
}

}  // namespace mixtral::serve
