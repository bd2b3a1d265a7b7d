#include "ops/recordings.h"

#include <algorithm>
#include <utility>

namespace mixtral {

void Recordings::run(const Shape& shape, const std::function<void()>& direct,
                     std::function<void()> repeatable) {
  if (arena_version_ != arena_.version()) known_.clear();
  arena_version_ = arena_.version();
  const auto found = std::ranges::find(known_, shape, &Known::shape);
  if (found == known_.end()) {
    if (known_.size() == most_)
      known_.erase(std::ranges::min_element(known_, {}, &Known::last_used));
    known_.push_back({.shape = shape, .program = nullptr, .last_used = ++clock_});
    direct();
    return;
  }
  found->last_used = ++clock_;
  if (found->program) {
    found->program->replay();
    ++replayed_;
  } else {
    found->program = backend_.record(std::move(repeatable));
  }
}

int64_t Recordings::recorded() const {
  return std::ranges::count_if(known_, [](const Known& known) { return known.program != nullptr; });
}

}  // namespace mixtral
