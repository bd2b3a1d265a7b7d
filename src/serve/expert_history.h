#pragma once

#include <chrono>
#include <deque>
#include <mutex>
#include <optional>

#include "infer/step_routes.h"

namespace mixtral::serve {

/// What the experts have taken, with its past of ten minutes, about a second apart. The engine's
/// thread notes, any thread asks.
class ExpertHistory {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kMost{600};  // of a window

  explicit ExpertHistory(const ModelConfig& config, Clock::time_point now = Clock::now());

  /// The load after a step.
  void note(const ExpertLoad& load, Clock::time_point now = Clock::now());

  struct Window {
    ExpertLoad load;  // taken in this time
    int64_t experts_per_token = 0;
    double seconds = 0;  // its length; less than asked for where the start is later
  };
  /// The last so many seconds, at most kMost; without a length, all since the start.
  Window window(std::optional<std::chrono::seconds> length,
                Clock::time_point now = Clock::now()) const;

 private:
  struct Moment {
    Clock::time_point time;
    ExpertLoad load;
  };

  int64_t experts_per_token_;
  Clock::time_point start_;
  mutable std::mutex mutex_;
  Moment latest_;
  std::deque<Moment> past_;  // of each window that may be asked for, what was before it
};

}  // namespace mixtral::serve
