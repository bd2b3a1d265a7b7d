#include "ops/quantize.h"

namespace mixtral::ops {
namespace {

void check_operands(Quantization quantization, std::string_view name, const Tensor& values,
                    const Tensor& codes, const Tensor& scales) {
  detail::expect_shape(name, values, {-1, -1});
  detail::expect_float(name, values);
  const int64_t rows = values.dim(0), columns = values.dim(1);
  detail::expect_shape("codes", codes, {rows, code_bytes(quantization, columns)});
  detail::expect_dtype("codes", codes, Dtype::u8);
  detail::expect_shape("scales", scales, {rows, scale_count(quantization, columns)});
  detail::expect_dtype("scales", scales, Dtype::f32);
}

}  // namespace

void check(const Quantize& op) { check_operands(op.quantization, "x", op.x, op.codes, op.scales); }
void check(const Dequantize& op) {
  check_operands(op.quantization, "y", op.y, op.codes, op.scales);
  if (!op.offsets) return;
  detail::expect_shape("offsets", op.offsets, {-1});
  detail::expect_dtype("offsets", op.offsets, Dtype::i32);
  CHECK(op.offsets.dim(0) > 1 && op.y.dim(0) % (op.offsets.dim(0) - 1) == 0,
        "y is not a whole number of rows for each group");
}

Cost cost(const Quantize& op) {
  return {2 * static_cast<double>(op.x.numel()),
          static_cast<double>(op.x.bytes() + op.codes.bytes() + op.scales.bytes())};
}
Cost cost(const Dequantize& op) {
  return {static_cast<double>(op.y.numel()),
          static_cast<double>(op.y.bytes() + op.codes.bytes() + op.scales.bytes())};
}

}  // namespace mixtral::ops
