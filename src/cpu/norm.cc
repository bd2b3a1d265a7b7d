// RMS normalisation: a row is read twice, the second time from the cache; bound by memory.

#include "ops/norm.h"

#include <algorithm>
#include <cmath>

#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/norm.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

template <class W>
void normalise(const ops::RmsNorm& op, int64_t begin, int64_t end) {
  const int64_t width = op.x.dim(1);
  const W* weight = op.weight.as<W>();
  for (int64_t n = begin; n < end; ++n) {
    const float* s = op.x.as<float>() + n * width;
    if (op.residual) {
      const float* x = s;
      const float* residual = op.residual.as<float>() + n * width;
      float* sum = op.sum.as<float>() + n * width;
      for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
        store_n(load_n(x + i, count) + load_n(residual + i, count), sum + i, count);
      });
      s = sum;
    }
    const float squares = sum_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats v = load_n(s + i, count);
      return v * v;
    });
    const float rstd =
        1 / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(op.eps));
    const Floats scale = broadcast(rstd);
    float* y = op.y.as<float>() + n * width;
    for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      store_n(load_n(s + i, count) * scale * load_n(weight + i, count), y + i, count);
    });
    if (op.rstd) op.rstd.as<float>()[n] = rstd;
  }
}

void norm_rows(const ops::RmsNorm& op, int64_t begin, int64_t end) {
  if (op.weight.dtype() == Dtype::f32)
    normalise<float>(op, begin, end);
  else if (op.weight.dtype() == Dtype::bf16)
    normalise<bf16>(op, begin, end);
  else
    normalise<f16>(op, begin, end);
}

/// dx of some rows; their share of dweight, summed row by row, is assigned to `dweight` unless
/// null.
template <class W>
void differentiate(const ops::RmsNormBackward& op, int64_t begin, int64_t end, float* dweight) {
  const int64_t width = op.x.dim(1);
  const W* weight = op.weight.as<W>();
  for (int64_t n = begin; n < end; ++n) {
    const float* dy = op.dy.as<float>() + n * width;
    const float* x = op.x.as<float>() + n * width;
    float* dx = op.dx.as<float>() + n * width;
    const float rstd = op.rstd.as<float>()[n];
    const float dot = sum_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      return load_n(dy + i, count) * load_n(weight + i, count) * load_n(x + i, count);
    });
    const Floats scale = broadcast(rstd);
    const Floats mean = broadcast(dot * rstd / static_cast<float>(width));  // of g · n
    for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats d = load_n(dy + i, count);
      const Floats normal = load_n(x + i, count) * scale;
      if (dweight != nullptr) {
        const Floats before = n == begin ? broadcast(0) : load_n(dweight + i, count);
        store_n(multiply_add(d, normal, before), dweight + i, count);
      }
      Floats gradient = scale * subtract_product(d * load_n(weight + i, count), normal, mean);
      if (op.accumulate) gradient = gradient + load_n(dx + i, count);
      store_n(gradient, dx + i, count);
    });
  }
}

void norm_backward_rows(const ops::RmsNormBackward& op, int64_t begin, int64_t end,
                        float* dweight) {
  if (op.weight.dtype() == Dtype::f32)
    differentiate<float>(op, begin, end, dweight);
  else if (op.weight.dtype() == Dtype::bf16)
    differentiate<bf16>(op, begin, end, dweight);
  else
    differentiate<f16>(op, begin, end, dweight);
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(norm_rows);
HWY_EXPORT(norm_backward_rows);

/// Rows whose weight gradients are summed one after another, whatever the number of threads.
constexpr int64_t kRowBlock = 64;

void expect_weight(std::string_view op, const Tensor& weight) {
  if (!is_float(weight.dtype()) || weight.dtype() == Dtype::f64) refuse_type(op, "weights", weight);
}

}  // namespace

void CpuBackend::run(const ops::RmsNorm& op) {
  expect_f32(op.kName, {op.x, op.residual, op.sum, op.y});
  expect_weight(op.kName, op.weight);
  pool_.for_ranges(op.x.dim(0), row_grain(op.x.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(norm_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::RmsNormBackward& op) {
  expect_f32(op.kName, {op.dy, op.x, op.dx});
  expect_weight(op.kName, op.weight);
  const int64_t rows = op.x.dim(0), width = op.x.dim(1);
  if (!op.dweight) {
    pool_.for_ranges(rows, row_grain(width), [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(norm_backward_rows)(op, begin, end, nullptr);
    });
    return;
  }
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  auto* partial = static_cast<float*>(shared_.get(0, blocks * width * int64_t{sizeof(float)}));
  const int64_t grain = std::max<int64_t>(1, row_grain(width) / kRowBlock);
  pool_.for_ranges(blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) HWY_DYNAMIC_DISPATCH(norm_backward_rows)
    (op, b * kRowBlock, std::min(rows, (b + 1) * kRowBlock), partial + b * width);
  });
  float* dweight = op.dweight.as<float>();
  pool_.for_ranges(width, row_grain(blocks), [&](int64_t begin, int64_t end) {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t d = begin; d < end; ++d) dweight[d] += partial[b * width + d];
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
