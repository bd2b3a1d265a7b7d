// Embedding and loss. The loss reads a row of logits three times (largest, exponentials, scaling);
// a row is at most a few hundred kilobytes, so that only the first reading goes to memory.

#include "ops/vocab.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/vocab.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"
#include "cpu/simd_math.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void copy_rows(const ops::Embedding& op, int64_t begin, int64_t end) {
  const int64_t width = op.x.dim(1);
  for (int64_t n = begin; n < end; ++n) {
    const T* from = op.table.as<T>() + op.tokens.as<int32_t>()[n] * width;
    float* to = op.x.as<float>() + n * width;
    for_lanes(width, [&](int64_t i, int64_t count)
                         HWY_ATTR { store_n(load_n(from + i, count), to + i, count); });
  }
}

void embedding_rows(const ops::Embedding& op, int64_t begin, int64_t end) {
  if (op.table.dtype() == Dtype::f32)
    copy_rows<float>(op, begin, end);
  else if (op.table.dtype() == Dtype::bf16)
    copy_rows<bf16>(op, begin, end);
  else
    copy_rows<f16>(op, begin, end);
}

/// Columns [begin, end) of all rows, in order: no two threads write to the same place.
void embedding_backward_columns(const ops::EmbeddingBackward& op, int64_t begin, int64_t end) {
  const int64_t width = op.dx.dim(1);
  for (int64_t n = 0; n < op.dx.dim(0); ++n) {
    const float* from = op.dx.as<float>() + n * width + begin;
    float* to = op.dtable.as<float>() + op.tokens.as<int32_t>()[n] * width + begin;
    for_lanes(end - begin, [&](int64_t i, int64_t count) HWY_ATTR {
      store_n(load_n(to + i, count) + load_n(from + i, count), to + i, count);
    });
  }
}

float largest_of(const float* x, int64_t n) {
  Floats m0 = broadcast(-INFINITY), m1 = m0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    m0 = maximum(load(x + i), m0);
    m1 = maximum(load(x + i + kLanes), m1);
  }
  float largest = lane_max(maximum(m0, m1));
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

void cross_entropy_rows(const ops::CrossEntropy& op, int64_t begin, int64_t end) {
  const int64_t width = op.logits.dim(1);
  for (int64_t n = begin; n < end; ++n) {
    const float* logits = op.logits.as<float>() + n * width;
    const int32_t label = op.labels.as<int32_t>()[n];
    float* gradient = op.dlogits ? op.dlogits.as<float>() + n * width : nullptr;
    float& loss = op.loss.as<float>()[n];
    if (label == ops::kIgnoredLabel) {
      loss = 0;
      if (gradient != nullptr) std::fill(gradient, gradient + width, 0.f);
      continue;
    }
    const float largest = largest_of(logits, width);
    const float label_logit = logits[label];
    const Floats shift = broadcast(largest);
    // The gradient's row may be the logits' own: the exponentials replace them.
    const float sum = sum_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats e = exponential_nonpositive(load_n(logits + i, count) - shift);
      if (gradient != nullptr) store_n(e, gradient + i, count);
      return fill_after(e, count, 0);
    });
    loss = static_cast<float>(std::log(static_cast<double>(sum)) +
                              (static_cast<double>(largest) - static_cast<double>(label_logit)));
    if (gradient == nullptr) continue;
    const float scale = op.scale.as<float>()[op.scale.numel() == 1 ? 0 : n];
    const Floats factor = broadcast(scale / sum);
    for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      store_n(load_n(gradient + i, count) * factor, gradient + i, count);
    });
    gradient[label] -= scale;
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(embedding_rows);
HWY_EXPORT(embedding_backward_columns);
HWY_EXPORT(cross_entropy_rows);

void expect_tokens(const Tensor& tokens, int64_t vocabulary) {
  for (int32_t token : tokens.span<int32_t>())
    CHECK(token >= 0 && token < vocabulary,
          fmt::format("token {} with a vocabulary of {}", token, vocabulary));
}

}  // namespace

void CpuBackend::run(const ops::Embedding& op) {
  expect_f32(op.kName, {op.x});
  if (op.table.dtype() == Dtype::f64) refuse_type(op.kName, "tables", op.table);
  expect_tokens(op.tokens, op.table.dim(0));
  pool_.for_ranges(op.x.dim(0), row_grain(op.x.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(embedding_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::EmbeddingBackward& op) {
  expect_f32(op.kName, {op.dx, op.dtable});
  expect_tokens(op.tokens, op.dtable.dim(0));
  constexpr int64_t kColumns = 64;  // whole cache lines, several of a row
  const int64_t grain = std::max(kColumns, row_grain(op.dx.dim(0)) / kColumns * kColumns);
  pool_.for_ranges(op.dx.dim(1), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(embedding_backward_columns)(op, begin, end);
  });
}

void CpuBackend::run(const ops::CrossEntropy& op) {
  expect_f32(op.kName, {op.logits, op.loss, op.scale, op.dlogits});
  const int64_t vocabulary = op.logits.dim(1);
  for (int32_t label : op.labels.span<int32_t>())
    CHECK(label == ops::kIgnoredLabel || (label >= 0 && label < vocabulary),
          fmt::format("label {} with a vocabulary of {}", label, vocabulary));
  pool_.for_ranges(op.logits.dim(0), row_grain(4 * vocabulary), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::SegmentSum& op) {
  expect_f32(op.kName, {op.x});
  const float* x = op.x.as<float>();
  for (int64_t s = 0; s < op.y.dim(0); ++s) {
    const int64_t begin = op.starts ? op.starts.as<int32_t>()[s] : 0;
    const int64_t end = op.starts ? op.starts.as<int32_t>()[s + 1] : op.x.dim(0);
    double sum = 0;
    for (int64_t n = begin; n < end; ++n) sum += static_cast<double>(x[n]);
    double& y = op.y.as<double>()[s];
    y = (op.accumulate ? y : 0.0) + sum;
  }
}

void CpuBackend::run(const ops::Advance& op) {
  const int32_t* drawn = op.drawn.as<int32_t>();
  int32_t* positions = op.positions.as<int32_t>();
  for (int64_t s = 0; s < op.drawn.dim(0); ++s) {
    if (positions[s] == ops::kPadding) continue;
    op.inputs.as<int32_t>()[s] = drawn[s];
    ++positions[s];
    if (!op.history) continue;
    const int64_t window = op.history.dim(1);
    op.history.as<int32_t>()[s * window + positions[s] % window] = drawn[s];
  }
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
