#include "train/dead_experts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace mixtral {
namespace {

std::string experts_text(const std::vector<size_t>& experts) {
  return fmt::format("{} {}", experts.size() == 1 ? "expert" : "experts", fmt::join(experts, ", "));
}

}  // namespace

std::vector<std::string> DeadExpertWatch::look(int64_t step, const RouterFigures& figures) {
  std::vector<std::string> sentences;
  experts_.resize(figures.load.size());
  for (size_t layer = 0; layer < figures.load.size(); ++layer) {
    const auto& load = figures.load[layer];
    experts_[layer].resize(load.size());
    std::vector<size_t> dead, back;
    int64_t since = step;
    for (size_t e = 0; e < load.size(); ++e) {
      Expert& expert = experts_[layer][e];
      if (load[e] != 0) {
        if (expert.lines >= kLines) back.push_back(e);
        expert = {};
        continue;
      }
      if (expert.lines++ == 0) expert.since = step;
      if (expert.lines != kLines) continue;
      dead.push_back(e);
      since = std::min(since, expert.since);
    }
    if (!dead.empty())
      sentences.push_back(
          fmt::format("step {}: no token of the logged batches has gone to {} of layer {} since "
                      "step {}; a higher ‹aux-coef› spreads the load",
                      step, experts_text(dead), layer, since));
    if (!back.empty())
      sentences.push_back(fmt::format("step {}: {} of layer {} took tokens again", step,
                                      experts_text(back), layer));
  }
  return sentences;
}

}  // namespace mixtral
