#include "ops/quantize.h"

#include <vector>

#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {

void RefBackend::run(const ops::Quantize& op) {
  const Floats x(op.x);
  std::vector<float> values(static_cast<size_t>(op.x.dim(1)));
  for (int64_t row = 0; row < op.x.dim(0); ++row) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(double{x(row, static_cast<int64_t>(i))});
    ops::pack_row(op.weight, row, values);
  }
}

void RefBackend::run(const ops::Dequantize& op) {
  const Floats y(op.y);
  std::vector<float> values(static_cast<size_t>(op.y.dim(1)));
  for (int64_t row = 0; row < op.y.dim(0); ++row) {
    ops::unpack_row(op.weight, row, values);
    for (size_t i = 0; i < values.size(); ++i)
      y(row, static_cast<int64_t>(i)) = static_cast<double>(values[i]);
  }
}

}  // namespace mixtral::ref
