#include "serve/engine_counts.h"

namespace mixtral::serve {

EngineCounts& EngineCounts::operator+=(const EngineCounts& more) {
  for (int64_t EngineCounts::* const each :
       {&EngineCounts::jobs, &EngineCounts::finished_jobs, &EngineCounts::failed_jobs,
        &EngineCounts::cancelled_jobs, &EngineCounts::refused_jobs, &EngineCounts::prompt_tokens,
        &EngineCounts::cached_prompt_tokens, &EngineCounts::generated_tokens,
        &EngineCounts::running, &EngineCounts::waiting})
    this->*each += more.*each;
  busy_seconds += more.busy_seconds;
  for (int64_t Engine::Usage::* const each :
       {&Engine::Usage::running, &Engine::Usage::waiting, &Engine::Usage::pages,
        &Engine::Usage::used_pages, &Engine::Usage::kept_pages, &Engine::Usage::preemptions,
        &Engine::Usage::reused_tokens})
    cache.*each += more.cache.*each;
  cache.speculation += more.cache.speculation;
  return *this;
}

EngineCounts EngineCounts::totals() const {
  EngineCounts counts = *this;
  counts.running = counts.waiting = 0;
  counts.cache = {.preemptions = cache.preemptions,
                  .reused_tokens = cache.reused_tokens,
                  .speculation = cache.speculation};
  return counts;
}

}  // namespace mixtral::serve
