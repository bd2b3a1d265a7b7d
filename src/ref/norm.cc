#include "ops/norm.h"

#include <cmath>

#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {

void RefBackend::run(const ops::RmsNorm& op) {
  const int64_t rows = op.x.dim(0), width = op.x.dim(1);
  const Floats x(op.x), residual(op.residual), weight(op.weight), sum(op.sum), y(op.y);
  const Floats rstd(op.rstd);
  // What is normalised is s as it is stored, which is what the backward pass will read.
  const Floats& s = op.residual ? sum : x;
  for (int64_t n = 0; n < rows; ++n) {
    if (op.residual)
      for (int64_t d = 0; d < width; ++d) sum(n, d) = x(n, d) + residual(n, d);
    double squares = 0;
    for (int64_t d = 0; d < width; ++d) squares += s(n, d) * s(n, d);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + op.eps);
    for (int64_t d = 0; d < width; ++d) y(n, d) = s(n, d) * scale * weight(d);
    if (op.rstd) rstd(n) = scale;
  }
}

void RefBackend::run(const ops::RmsNormBackward& op) {
  const int64_t rows = op.x.dim(0), width = op.x.dim(1);
  const Floats dy(op.dy), x(op.x), weight(op.weight), rstd(op.rstd), dx(op.dx);
  const Floats dweight(op.dweight);
  if (op.dweight) {
    for (int64_t d = 0; d < width; ++d) {
      double sum = 0;
      for (int64_t n = 0; n < rows; ++n) sum += dy(n, d) * (x(n, d) * rstd(n));
      dweight(d) += sum;
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    double mean = 0;  // of g · n
    for (int64_t d = 0; d < width; ++d)
      mean += (dy(n, d) * weight(d)) * (x(n, d) * rstd(n)) / static_cast<double>(width);
    for (int64_t d = 0; d < width; ++d) {
      const double gradient = rstd(n) * (dy(n, d) * weight(d) - x(n, d) * rstd(n) * mean);
      const double before = op.accumulate ? dx(n, d) : 0.0;
      dx(n, d) = before + gradient;
    }
  }
}

}  // namespace mixtral::ref
