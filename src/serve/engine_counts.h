#pragma once

#include <cstdint>

#include "infer/engine.h"

namespace mixtral::serve {

/// What an engine did so far, and what is there now.
struct EngineCounts {
  int64_t jobs = 0, finished_jobs = 0, failed_jobs = 0, cancelled_jobs = 0, refused_jobs = 0;
  int64_t prompt_tokens = 0, cached_prompt_tokens = 0, generated_tokens = 0;
  int64_t running = 0, waiting = 0;  // answers that run; jobs of which none has begun
  double busy_seconds = 0;           // in steps
  Engine::Usage cache;

  /// Adds what another engine did and has.
  EngineCounts& operator+=(const EngineCounts& more);
  /// What still counts when the engine is gone: not what was there.
  EngineCounts totals() const;
};

}  // namespace mixtral::serve
