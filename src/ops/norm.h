#pragma once

#include "ops/common.h"

namespace mixtral::ops {

/// s = x (+ residual);  rstd = 1 / sqrt(mean_d s² + eps);  y = s · rstd · weight
/// (Zhang & Sennrich 2019, "Root mean square layer normalization").
struct RmsNorm {
  static constexpr std::string_view kName = "rms_norm";
  Tensor x;         // [N, D]
  Tensor residual;  // [N, D] or empty
  Tensor weight;    // [D]
  Tensor sum;       // [N, D] receives s; given exactly when residual is; may alias x or residual
  Tensor y;         // [N, D]
  Tensor rstd;      // [N] statistics, or empty when no backward pass follows
  double eps = 1e-5;
};

/// With g = dy · weight and n = x · rstd:  dx = rstd · (g − n · mean_d(g · n))  (+= if accumulate);
/// dweight += Σ_rows dy · n.
struct RmsNormBackward {
  static constexpr std::string_view kName = "rms_norm_backward";
  Tensor dy;       // [N, D]
  Tensor x;        // [N, D]: what was normalised (s above)
  Tensor weight;   // [D]
  Tensor rstd;     // [N]
  Tensor dx;       // [N, D]; may not alias dy
  Tensor dweight;  // [D] statistics, or empty when the weight is frozen
  bool accumulate = false;
};

void check(const RmsNorm&);
void check(const RmsNormBackward&);
Cost cost(const RmsNorm&);
Cost cost(const RmsNormBackward&);

}  // namespace mixtral::ops
