#pragma once

#include <cstdint>
#include <string_view>

namespace mixtral {

/// The learning rate as a function of the step alone: it rises in a straight line over the warm-up
/// to `peak`, then
///   constant  stays there;
///   cosine    falls along half a cosine to `least`, which the last step has;
///   wsd       stays (warm-up, stable, decay), and falls in a straight line to `least` over the
///             last `decay_fraction` of all steps.
struct Schedule {
  enum class Kind { constant, cosine, wsd };

  Kind kind = Kind::cosine;
  double peak = 1e-3;
  double least = 0;
  int64_t warmup = 0;      // steps
  int64_t iterations = 1;  // steps altogether
  double decay_fraction = 0.2;

  /// The rate of a step, counted from 1. Steps after the last keep the last one's rate.
  double at(int64_t step) const;
  /// Throws UsageError naming the flag that makes no sense.
  void validate() const;
};

/// "constant", "cosine" or "wsd". Throws UsageError.
Schedule::Kind parse_schedule(std::string_view name);
std::string_view to_string(Schedule::Kind kind);

}  // namespace mixtral
