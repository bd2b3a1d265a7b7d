#pragma once

#include "ops/common.h"
#include "ops/weight.h"

namespace mixtral::ops {

/// weight = x in the weight's format, each number rounded as its format says (weight_format.h). x
/// is first rounded to f32. It must be finite: where it is not, the block is unspecified.
struct Quantize {
  static constexpr std::string_view kName = "quantize";
  Tensor x;       // [R, I] of any floating-point type
  Weight weight;  // of R rows in plain order, not dense
};

/// y = the weight's numbers in f32, then rounded to y's type.
struct Dequantize {
  static constexpr std::string_view kName = "dequantize";
  Weight weight;  // of R rows, not dense
  Tensor y;       // [R, I] of any floating-point type
  /// [G+1] i32, as a product's: groups without rows need not be written. Or empty.
  Tensor offsets;
};

void check(const Quantize&);
void check(const Dequantize&);
Cost cost(const Quantize&);
Cost cost(const Dequantize&);

}  // namespace mixtral::ops
