#include "serve/expert_history.h"

#include <algorithm>

namespace mixtral::serve {

using std::chrono::seconds;

ExpertHistory::ExpertHistory(const ModelConfig& config, Clock::time_point now)
    : experts_per_token_(config.experts_per_token), start_(now), latest_{now, ExpertLoad(config)} {
  past_.push_back(latest_);
}

void ExpertHistory::note(const ExpertLoad& load, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (latest_.time - past_.back().time >= seconds(1) || now - latest_.time >= seconds(1))
    past_.push_back(latest_);
  while (past_.size() > 1 && past_[1].time <= now - kMost) past_.pop_front();
  latest_ = {now, load};
}

ExpertHistory::Window ExpertHistory::window(std::optional<seconds> length,
                                            Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  Window window{.load = latest_.load, .experts_per_token = experts_per_token_};
  const Clock::time_point begin = length ? now - *length : start_;
  window.seconds = std::chrono::duration<double>(now - std::max(begin, start_)).count();
  if (begin <= start_) return window;
  const Moment* before = &past_.front();
  for (const Moment& moment : past_)
    if (moment.time <= begin) before = &moment;
  if (latest_.time <= begin) before = &latest_;
  window.load.tokens -= before->load.tokens;
  for (size_t i = 0; i < window.load.taken.size(); ++i)
    window.load.taken[i] -= before->load.taken[i];
  return window;
}

}  // namespace mixtral::serve
