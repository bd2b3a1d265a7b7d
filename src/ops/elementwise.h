#pragma once

#include "ops/common.h"

namespace mixtral::ops {

/// x = value
struct Fill {
  static constexpr std::string_view kName = "fill";
  Tensor x;  // any shape, any type
  double value = 0;
};

/// y = x, converted to y's type (round to nearest even). Same element count.
struct Convert {
  static constexpr std::string_view kName = "convert";
  Tensor x;  // any floating-point type, or any type equal to y's
  Tensor y;
};

/// y += scale · x
struct AddScaled {
  static constexpr std::string_view kName = "add_scaled";
  Tensor x;
  Tensor y;  // x's element count
  double scale = 1;
};

/// x[i] ~ N(0, deviation²): element i is Box-Muller's cosine branch,
///   deviation · sqrt(−2 log unit_float_open(a)) · cos(2π unit_float(b)),
/// on words a = 2·(i mod 2) and b = a + 1 of philox(seed, stream, i / 2); the same numbers on every
/// backend up to rounding.
struct RandomNormal {
  static constexpr std::string_view kName = "random_normal";
  Tensor x;  // any floating-point type
  uint64_t seed = 0;
  uint64_t stream = 0;
  double deviation = 1;
};

/// y[i] = x[i] / (1 − p) with probability 1 − p, else 0; kept when unit_float(word i mod 4 of
/// philox(seed, stream, i / 4)) >= p, compared in f64. The gradient is the same op on dy. The seed
/// is read from the device, so that a recorded step can draw other masks each time it is replayed.
struct Dropout {
  static constexpr std::string_view kName = "dropout";
  Tensor x;
  Tensor y;     // x's shape and type; may alias it
  Tensor seed;  // [1] i64: the seed's bits
  double probability = 0;
  uint64_t stream = 0;
};

void check(const Fill&);
void check(const Convert&);
void check(const AddScaled&);
void check(const RandomNormal&);
void check(const Dropout&);
Cost cost(const Fill&);
Cost cost(const Convert&);
Cost cost(const AddScaled&);
Cost cost(const RandomNormal&);
Cost cost(const Dropout&);

}  // namespace mixtral::ops
