#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "serve/service.h"

namespace mixtral::serve {

/// The models of a server, which are loaded and unloaded while it runs. The first is there from the
/// start on; the others are entries of a folder. One thread loads and unloads, one at a time;
/// requests that wait for a model are told when it is there. For many threads, not the engines'.
class Models {
 public:
  struct Options {
    Service::Options service;       // name, adapters and context: of the first model alone
    int64_t most_context = 8192;    // of the others, where they have so many positions
    OpenOptions open;               // of each
    std::filesystem::path states;   // folder of what caches keep; empty: nothing is written
    std::filesystem::path folder;   // of models and adapters that may be loaded; empty: none may
    std::optional<int64_t> budget;  // bytes of memory for all of them, as planned
    std::chrono::milliseconds idle{0};  // a model that nobody asks for so long is unloaded; 0: none
    std::chrono::milliseconds grace{std::chrono::seconds(30)};  // of answers, when one is unloaded
    int64_t waiting = 64;  // requests that may wait for one model to be loaded
  };

  enum class State { unloaded, loading, loaded, unloading };
  /// What is known of a model.
  struct Listed {
    std::string id;
    State state = State::unloaded;
    bool pinned = false;               // is not unloaded for being idle
    std::string failure;               // why it could not be loaded last; empty: it could
    std::shared_ptr<Service> service;  // while it is loaded
  };

  /// Opens the first model. Throws as Service does. `note` may be called on another thread later.
  Models(const ModelSource& first, Options options, const ModelSource::Note& note);
  /// Ends what runs, with errors.
  ~Models();
  Models(const Models&) = delete;
  Models& operator=(const Models&) = delete;

  using Use = std::function<void(const std::shared_ptr<Service>&)>;
  using Fail = std::function<void(const ApiError&)>;
  /// Calls `use` with the model that a request names, "BASE" or "BASE:ADAPTER" (empty: the first):
  /// at once where it is loaded; where it was unloaded for being idle, when it is loaded again, on
  /// another thread. What `use` throws then goes to `fail`. Throws ApiError: 404 for a model that
  /// is unknown or unloaded, 429 and 503.
  void use(std::string_view name, const Use& use, const Fail& fail);
  /// The same where it must not wait: 503 while it is not loaded.
  std::shared_ptr<Service> loaded(std::string_view name);

  using Done = std::function<void(const ApiError* error)>;
  /// Loads a model of the folder, or the first again; one that is there is only pinned or not.
  /// `done` is called once, on another thread, with an error where it fails: it is no model, or its
  /// plan does not fit the memory (the plan's table is part of the message). Throws ApiError 404
  /// where no entry has this name.
  void load(const std::string& id, bool pinned, Done done);
  /// Lets the answers that are under way end, for the grace at most, refuses new ones, and gives
  /// the memory back. Throws ApiError 404.
  void unload(const std::string& id, Done done);
  /// Loads an adapter of the folder for a model, or takes one out. Throw ApiError 404.
  void load_adapter(const std::string& base, const std::string& name, const std::string& entry,
                    Done done);
  void unload_adapter(const std::string& base, const std::string& name, Done done);
  /// Runs what takes long on the thread that loads. What it throws goes to `fail`. Throws ApiError
  /// 404 where the model is not there.
  void run(const std::string& id, std::function<void(Service&)> work, Fail fail);

  /// The first model, then those that are or were loaded, then the folder's others.
  std::vector<Listed> list() const;
  const std::string& first() const { return first_; }
  bool has_folder() const { return !options_.folder.empty(); }
  const std::filesystem::path& states() const { return options_.states; }
  /// Of all models together; what unloaded ones did counts on.
  EngineCounts counts() const;

  /// Takes no more requests, and so on, for all (EngineThread's).
  void drain();
  bool idle() const;
  /// Whether one is being loaded, which takes its time and cannot be stopped.
  bool loading() const;
  void end_all(const ApiError& error);

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    Use use;
    Fail fail;
  };
  struct Entry {
    State state = State::unloaded;
    bool pinned = false, was_idle = false;  // was_idle: a request loads it again
    std::string failure;
    std::map<std::string, std::string> adapters;  // name, folder; it comes back with these
    std::shared_ptr<Service> service;
    std::vector<Waiting> waiting;
    Clock::time_point last_used;
  };

  void work();
  void add_task(std::function<void()> task);
  void load_now(const std::string& id);
  void unload_now(const std::string& id, bool for_idling);
  void unload_idle();
  void tell_waiting(const std::vector<Waiting>& waiting, const std::shared_ptr<Service>& service,
                    const ApiError* error);
  bool is_in_use(const Entry& entry) const {
    return Clock::now() - entry.last_used < options_.idle;
  }
  /// With the mutex held; the entry's name in a request's.
  std::string base_of(std::string_view name) const;
  std::filesystem::path path_of(const std::string& entry) const;
  std::optional<int64_t> memory_left() const;
  std::shared_ptr<Service> service_of(const std::string& id);

  const Options options_;
  const ModelSource::Note note_;
  const ModelSource first_source_;
  std::string first_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Entry> entries_;  // that are or were loaded
  std::deque<std::function<void()>> tasks_;
  EngineCounts past_;  // of what is unloaded
  bool stopping_ = false, draining_ = false;
  std::thread thread_;
};

}  // namespace mixtral::serve
