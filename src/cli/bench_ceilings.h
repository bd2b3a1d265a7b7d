#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "open/open_model.h"
#include "ops/backend.h"

namespace mixtral {

/// What this machine can do at best, measured in this process: bytes and operations a second.
struct Ceilings {
  double read = 0;
  double copy = 0;     // read and written
  double product = 0;  // of the type in which the work multiplies numbers
  // A processor's peaks, on operands in registers; 0 elsewhere.
  double f32 = 0, bf16 = 0, int8 = 0;
  // Whether nothing can be faster. The loops of `ref` can, and products in fp8, which are compared
  // with bf16's ceiling.
  bool firm = true;

  /// The larger of both, one by one: of measurements before and after some work.
  void raise(const Ceilings& other);
};

/// The best of several short runs of each, once the clock is up.
Ceilings measure_ceilings(Backend& backend, const Precision& precision, int threads);

/// rate / one of the ceilings. Throws Error where it is above 105% of a firm one: then the ceiling
/// was measured wrongly, and no share of it means anything.
double share_of(const Ceilings& ceilings, std::string_view what, double rate, double ceiling);

/// Seconds of each of `count` runs, after one that is not counted.
std::vector<double> time_runs(Backend& backend, int count, const std::function<void()>& work);

double median(std::vector<double> values);

}  // namespace mixtral
