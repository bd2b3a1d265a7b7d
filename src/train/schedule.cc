#include "train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/advice.h"
#include "base/error.h"

namespace mixtral {

double Schedule::at(int64_t step) const {
  step = std::clamp<int64_t>(step, 1, std::max<int64_t>(iterations, 1));
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  if (kind == Kind::constant) return peak;
  int64_t begin = warmup;  // the last step at the peak
  if (kind == Kind::wsd) {
    const auto decay = std::llround(decay_fraction * static_cast<double>(iterations));
    begin = std::max(warmup, iterations - static_cast<int64_t>(decay));
  }
  if (step <= begin) return peak;
  const double progress =
      static_cast<double>(step - begin) / static_cast<double>(iterations - begin);
  const double share = kind == Kind::cosine ? 0.5 * (1 + std::cos(M_PI * progress)) : 1 - progress;
  return least + (peak - least) * share;
}

void Schedule::validate() const {
  auto require = [](bool good, std::string_view setting, std::string_view expected, double found) {
    if (!good)
      throw AdvisedUsageError(fmt::format("{}: expected {}, found {}", setting, expected, found));
  };
  require(iterations >= 1, "‹iters›", "at least 1", static_cast<double>(iterations));
  require(std::isfinite(peak) && peak >= 0, "‹lr›", "a rate of 0 or more", peak);
  require(std::isfinite(least) && least >= 0 && least <= peak, "‹min-lr›",
          fmt::format("0 to the learning rate of {}", peak), least);
  require(warmup >= 0 && warmup <= iterations, "‹warmup›",
          fmt::format("0 to the {} steps of the run", iterations), static_cast<double>(warmup));
  require(decay_fraction > 0 && decay_fraction <= 1, "‹decay-fraction›",
          "a share of all steps between 0 and 1", decay_fraction);
}

Schedule::Kind parse_schedule(std::string_view name) {
  for (const auto kind : {Schedule::Kind::constant, Schedule::Kind::cosine, Schedule::Kind::wsd})
    if (name == to_string(kind)) return kind;
  throw AdvisedUsageError(
      fmt::format("‹schedule›: expected constant, cosine or wsd, found {}", name));
}

std::string_view to_string(Schedule::Kind kind) {
  switch (kind) {
    case Schedule::Kind::constant:
      return "constant";
    case Schedule::Kind::cosine:
      return "cosine";
    case Schedule::Kind::wsd:
      return "wsd";
  }
  return "?";
}

}  // namespace mixtral
