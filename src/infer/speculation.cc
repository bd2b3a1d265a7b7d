#include "infer/speculation.h"

#include <algorithm>
#include <iterator>

namespace mixtral {
namespace {

constexpr int64_t kWarmTimes = 2;     // of a size: memory is taken, and the step is recorded
constexpr int64_t kFreshNotes = 256;  // after which the time without draft tokens is measured again
constexpr double kLeastGain = 1.02;   // below it, noise decides
constexpr int64_t kMostDraftRows = 256;
constexpr int64_t kShortestWait = 32, kLongestWait = 1024;

}  // namespace

int64_t draft_rows(int64_t sequences, int64_t tokens) {
  return std::max(tokens, std::min(kMostDraftRows, sequences * tokens));
}

SpeculationCounts& SpeculationCounts::operator+=(const SpeculationCounts& more) {
  drafted += more.drafted;
  accepted += more.accepted;
  seconds += more.seconds;
  plain_seconds += more.plain_seconds;
  return *this;
}

void AcceptanceRate::note(bool accepted) {
  tested_ = keep_ * tested_ + 1;
  accepted_ = keep_ * accepted_ + (accepted ? 1 : 0);
}

void SizeTimes::note(int64_t size, double seconds) {
  Times& times = sizes_[size];
  times.last = ++notes_;
  if (++times.noted <= kWarmTimes) return;
  if (times.latest.size() < kKept)
    times.latest.push_back(seconds);
  else
    times.latest[static_cast<size_t>(times.noted) % kKept] = seconds;
  std::vector<double> sorted = times.latest;
  const auto middle = sorted.begin() + std::ssize(sorted) / 2;
  std::ranges::nth_element(sorted, middle);
  times.median = *middle;
}

std::optional<double> SizeTimes::seconds(int64_t size) const {
  const auto measured = [](const auto& entry) { return !entry.second.latest.empty(); };
  const auto from = sizes_.lower_bound(size);
  const auto above = std::find_if(from, sizes_.end(), measured);
  if (above != sizes_.end() && above->first == size) return above->second.median;
  const auto below = std::find_if(std::make_reverse_iterator(from), sizes_.rend(), measured);
  if (above == sizes_.end() && below == sizes_.rend()) return std::nullopt;
  if (above == sizes_.end()) return below->second.median;
  if (below == sizes_.rend()) return above->second.median;
  const double part =
      static_cast<double>(size - below->first) / static_cast<double>(above->first - below->first);
  return below->second.median + part * (above->second.median - below->second.median);
}

bool SizeTimes::is_fresh(int64_t size, int64_t notes) const {
  const auto found = sizes_.find(size);
  return found != sizes_.end() && !found->second.latest.empty() &&
         found->second.last + notes > notes_;
}

/// What a step's time is noted under: of many rows, numbers that are close are one.
int64_t DraftBudget::padded(int64_t rows) const {
  if (options_.padded) return options_.padded(rows);
  int64_t unit = 1;
  while (rows >= 16 * unit) unit *= 2;
  return (rows + unit - 1) / unit * unit;
}

std::optional<double> DraftBudget::step_seconds(int64_t rows) const {
  if (!steps_.is_fresh(padded(rows), 4 * kFreshNotes)) return std::nullopt;
  return steps_.seconds(padded(rows));
}

std::vector<int64_t> DraftBudget::choose(int64_t decoding,
                                         std::span<const DraftCandidate> candidates) {
  std::vector<int64_t> chosen(candidates.size(), 0);
  struct Gain {
    double tokens = 0;  // that the row is expected to add
    size_t candidate = 0;
  };
  // The best first. Those of one candidate are in the order of its draft.
  std::vector<Gain> gains;
  for (size_t i = 0; i < candidates.size(); ++i) {
    double tokens = 1;
    for (int64_t j = 0; j < candidates[i].most; ++j)
      gains.push_back({tokens *= candidates[i].chance, i});
  }
  std::ranges::stable_sort(gains, std::greater(), &Gain::tokens);
  gains.resize(std::min(gains.size(), static_cast<size_t>(options_.rows)));
  if (gains.empty()) return chosen;
  size_t best = gains.size();
  if (options_.adapt) {
    if (!steps_.is_fresh(padded(decoding), kFreshNotes)) return chosen;  // this step measures it
    const double plain_rate =
        static_cast<double>(decoding) / steps_.seconds(padded(decoding)).value();
    double tokens = static_cast<double>(decoding), best_rate = 0;
    int64_t deepest = 0;
    std::vector<int64_t> taken(candidates.size(), 0);
    for (size_t i = 0; i < gains.size(); ++i) {
      tokens += gains[i].tokens;
      deepest = std::max(deepest, ++taken[gains[i].candidate]);
      const int64_t rows = padded(decoding + static_cast<int64_t>(i) + 1);
      const double rate =
          tokens / (steps_.seconds(rows).value_or(0) + drafting_.seconds(deepest).value_or(0));
      if (rate <= best_rate) continue;
      best_rate = rate;
      best = i + 1;
    }
    if (best_rate < kLeastGain * plain_rate) {
      if (wait_ == 0) wait_ = kShortestWait;
      if (++lost_ < wait_) return chosen;
      wait_ = std::min(2 * wait_, kLongestWait);
    } else {
      wait_ = kShortestWait;
    }
    lost_ = 0;
  }
  for (size_t i = 0; i < best; ++i) ++chosen[gains[i].candidate];
  return chosen;
}

}  // namespace mixtral
