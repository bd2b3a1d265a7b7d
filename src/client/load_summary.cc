#include "client/load_summary.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace mixtral::client {

Spread spread_of(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::ranges::sort(seconds);
  const auto count = static_cast<double>(seconds.size());
  const auto at = [&](double share) {
    const double rank = std::ceil(share * count);
    return 1e3 * seconds[static_cast<size_t>(std::max(rank, 1.0)) - 1];
  };
  const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return {.mean = 1e3 * sum / count,
          .p50 = at(0.5),
          .p90 = at(0.9),
          .p99 = at(0.99),
          .most = 1e3 * seconds.back()};
}

LoadSummary summarize(const LoadResults& results, const Limits& limits) {
  LoadSummary summary{.requests = static_cast<int64_t>(results.outcomes.size()),
                      .seconds = results.seconds};
  std::vector<double> first, token, gap, whole;
  for (const Outcome& outcome : results.outcomes) {
    if (!outcome.error.empty()) {
      ++summary.errors[outcome.error];
      continue;
    }
    if (outcome.left) {
      ++summary.left;
      summary.tokens += outcome.tokens;
      continue;
    }
    ++summary.answered;
    summary.prompt_tokens += outcome.prompt_tokens;
    summary.tokens += outcome.tokens;
    whole.push_back(outcome.end - outcome.asked);
    gap.insert(gap.end(), outcome.gaps.begin(), outcome.gaps.end());
    // An answer without text is good by its end.
    const double until_first = (outcome.first > 0 ? outcome.first : outcome.end) - outcome.asked;
    const double each =
        outcome.tokens > 1 && outcome.first > 0
            ? (outcome.last - outcome.first) / static_cast<double>(outcome.tokens - 1)
            : 0;
    if (outcome.first > 0) first.push_back(until_first);
    if (each > 0) token.push_back(each);
    const auto within = [](double time, double limit) { return limit <= 0 || 1e3 * time <= limit; };
    if (within(until_first, limits.first) && within(each, limits.token)) ++summary.good;
  }
  if (summary.seconds > 0) {
    const auto rate = [&](int64_t count) { return static_cast<double>(count) / summary.seconds; };
    summary.requests_per_second = rate(summary.answered);
    summary.tokens_per_second = rate(summary.tokens);
    summary.prompt_tokens_per_second = rate(summary.prompt_tokens);
    summary.goodput = rate(summary.good);
  }
  summary.first = spread_of(std::move(first));
  summary.token = spread_of(std::move(token));
  summary.gap = spread_of(std::move(gap));
  summary.whole = spread_of(std::move(whole));
  return summary;
}

}  // namespace mixtral::client
