// Routing and the elementwise side of the experts. Routing itself is a few operations a token;
// gathering, combining and SwiGLU are bound by memory.

#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/moe.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"
#include "cpu/simd_math.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

/// p = softmax(logits); returns log Σ exp(logits).
float softmax(const float* logits, int64_t n, float* p) {
  const float largest = *std::max_element(logits, logits + n);
  const float sum = sum_lanes(n, [&](int64_t i, int64_t count) HWY_ATTR {
    const Floats e = exponential_nonpositive(load_n(logits + i, count) - broadcast(largest));
    store_n(e, p + i, count);
    return fill_after(e, count, 0);
  });
  const Floats scale = broadcast(1 / sum);
  for_lanes(n, [&](int64_t i, int64_t count)
                   HWY_ATTR { store_n(load_n(p + i, count) * scale, p + i, count); });
  return largest + static_cast<float>(std::log(static_cast<double>(sum)));
}

/// Experts and weights of some tokens.
void choose_experts(const ops::Route& op, int64_t begin, int64_t end) {
  const int64_t experts = op.logits.dim(1), k = op.weights.dim(1);
  for (int64_t n = begin; n < end; ++n) {
    const float* logits = op.logits.as<float>() + n * experts;
    float* weight = op.weights.as<float>() + n * k;
    int32_t* chosen = op.expert.as<int32_t>() + n * k;
    if (is_padding(op.positions, n)) {
      std::fill_n(chosen, k, -1);
      std::fill_n(weight, k, 0.f);
      continue;
    }
    // The next is the largest of those that come after the last in descending order with ties to
    // the lower index; NaN is taken when nothing else is left.
    for (int64_t j = 0; j < k; ++j) {
      int32_t best = -1;
      for (int32_t e = 0; e < experts; ++e) {
        if (best >= 0 && !(logits[e] > logits[best])) continue;
        if (std::find(chosen, chosen + j, e) == chosen + j) best = e;
      }
      chosen[j] = best;
      weight[j] = logits[best];
    }
    const float largest = weight[0];
    const float sum = sum_lanes(k, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats e = exponential_nonpositive(load_n(weight + i, count) - broadcast(largest));
      store_n(e, weight + i, count);
      return fill_after(e, count, 0);
    });
    for (int64_t j = 0; j < k; ++j) weight[j] /= sum;
  }
}

void route_backward_rows(const ops::RouteBackward& op, int64_t begin, int64_t end) {
  const int64_t experts = op.logits.dim(1), k = op.weights.dim(1);
  const float* dp = op.dprobability ? op.dprobability.as<float>() : nullptr;
  for (int64_t n = begin; n < end; ++n) {
    const float* w = op.weights.as<float>() + n * k;
    const float* dw = op.dweights.as<float>() + n * k;
    const int32_t* expert = op.expert.as<int32_t>() + n * k;
    float* p = op.dlogits.as<float>() + n * experts;
    const float log_sum = softmax(op.logits.as<float>() + n * experts, experts, p);
    float p_dp = 0;  // Σ p · dprobability
    if (dp != nullptr)
      for (int64_t e = 0; e < experts; ++e) p_dp += p[e] * dp[e];
    const float z = static_cast<float>(op.z_scale) * 2 * log_sum;
    for (int64_t e = 0; e < experts; ++e) {
      const float balance = dp != nullptr ? dp[e] - p_dp : 0;
      p[e] *= balance + z;
    }
    float w_dw = 0;  // Σ_K w dw
    for (int64_t j = 0; j < k; ++j) w_dw += w[j] * dw[j];
    for (int64_t j = 0; j < k; ++j) p[expert[j]] += w[j] * (dw[j] - w_dw);
  }
}

/// Sums over some tokens: of each expert's probability, then of lse², then of the entropy. `p` is
/// room for E floats.
void router_sums(const ops::RouterStatistics& op, int64_t begin, int64_t end, double* sums,
                 float* p) {
  const int64_t experts = op.logits.dim(1);
  std::fill(sums, sums + experts + 2, 0.0);
  for (int64_t n = begin; n < end; ++n) {
    if (is_padding(op.positions, n)) continue;
    const float* logits = op.logits.as<float>() + n * experts;
    const float log_sum = softmax(logits, experts, p);
    double entropy = 0;
    for (int64_t e = 0; e < experts; ++e) {
      sums[e] += static_cast<double>(p[e]);
      if (p[e] > 0) entropy -= static_cast<double>(p[e] * (logits[e] - log_sum));
    }
    sums[experts] += static_cast<double>(log_sum) * static_cast<double>(log_sum);
    sums[experts + 1] += entropy;
  }
}

void combine_rows(const ops::CombineRows& op, int64_t begin, int64_t end) {
  const int64_t width = op.out.dim(1), k = op.slot.dim(1);
  const float* y = op.y.as<float>();
  for (int64_t n = begin; n < end; ++n) {
    const int32_t* slot = op.slot.as<int32_t>() + n * k;
    const float* residual = op.residual ? op.residual.as<float>() + n * width : nullptr;
    float* out = op.out.as<float>() + n * width;
    if (slot[0] < 0) {  // padding
      for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
        store_n(residual != nullptr ? load_n(residual + i, count) : broadcast(0), out + i, count);
      });
      continue;
    }
    for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      Floats sum = load_n(y + slot[0] * width + i, count);
      for (int64_t j = 1; j < k; ++j) sum = sum + load_n(y + slot[j] * width + i, count);
      if (residual != nullptr) sum = sum + load_n(residual + i, count);
      store_n(sum, out + i, count);
    });
  }
}

void swiglu_rows(const ops::SwiGlu& op, int64_t begin, int64_t end) {
  const int64_t width = op.h.dim(1);
  for (int64_t r = begin; r < end; ++r) {
    const float* gate = op.gate_up.as<float>() + r * 2 * width;
    const float* up = gate + width;
    float* h = op.h.as<float>() + r * width;
    const Floats w = broadcast(op.weights.as<float>()[op.source.as<int32_t>()[r]]);
    for_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats g = load_n(gate + i, count);
      const Floats silu = g / (broadcast(1) + exponential(broadcast(0) - g));
      store_n(w * silu * load_n(up + i, count), h + i, count);
    });
  }
}

void swiglu_backward_rows(const ops::SwiGluBackward& op, int64_t begin, int64_t end) {
  const int64_t width = op.dh.dim(1);
  for (int64_t r = begin; r < end; ++r) {
    const float* gate = op.gate_up.as<float>() + r * 2 * width;
    const float* up = gate + width;
    const float* dh = op.dh.as<float>() + r * width;
    float* d_gate = op.d_gate_up.as<float>() + r * 2 * width;
    float* d_up = d_gate + width;
    float* h = op.h ? op.h.as<float>() + r * width : nullptr;
    const int32_t assignment = op.source.as<int32_t>()[r];
    const Floats w = broadcast(op.weights.as<float>()[assignment]);
    const float dw = sum_lanes(width, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats g = load_n(gate + i, count), u = load_n(up + i, count);
      const Floats d = load_n(dh + i, count);
      const Floats s = sigmoid(g);
      const Floats silu = g * s;
      const Floats slope = s * multiply_add(g, broadcast(1) - s, broadcast(1));
      store_n(w * d * u * slope, d_gate + i, count);
      store_n(w * d * silu, d_up + i, count);
      if (h) store_n(w * silu * u, h + i, count);
      return d * silu * u;
    });
    op.dweights.as<float>()[assignment] = dw;
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(choose_experts);
HWY_EXPORT(route_backward_rows);
HWY_EXPORT(router_sums);
HWY_EXPORT(combine_rows);
HWY_EXPORT(swiglu_rows);
HWY_EXPORT(swiglu_backward_rows);

constexpr int64_t kTokenBlock = 256;  // whose statistics are summed one after another

/// Rows sorted by expert, and within an expert by token: a counting sort.
void sort_rows(const ops::Route& op) {
  const int64_t experts = op.logits.dim(1), rows = op.source.dim(0);
  const int32_t* expert = op.expert.as<int32_t>();
  int32_t* offsets = op.offsets.as<int32_t>();
  int32_t* slot = op.slot.as<int32_t>();
  int32_t* source = op.source.as<int32_t>();
  std::fill(offsets, offsets + experts + 1, 0);
  for (int64_t a = 0; a < rows; ++a)
    if (expert[a] >= 0) ++offsets[expert[a] + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  std::fill(source + offsets[experts], source + rows, 0);
  // offsets[e] runs through expert e's rows; each then stands where the next expert begins.
  for (int64_t a = 0; a < rows; ++a) {
    if (expert[a] < 0) {
      slot[a] = -1;
      continue;
    }
    const int32_t row = offsets[expert[a]]++;
    slot[a] = row;
    source[row] = static_cast<int32_t>(a);
  }
  for (int64_t e = experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

}  // namespace

void CpuBackend::run(const ops::Route& op) {
  expect_f32(op.kName, {op.logits});
  const int64_t work = op.logits.dim(1) * op.weights.dim(1) * 4;  // a token, in elements of a copy
  pool_.for_ranges(op.logits.dim(0), row_grain(work), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(choose_experts)(op, begin, end);
  });
  sort_rows(op);
  expected_.route(op.offsets.as<int32_t>(), op.logits.dim(1));
}

void CpuBackend::run(const ops::RouteBackward& op) {
  expect_f32(op.kName, {op.logits, op.weights, op.dweights, op.dprobability});
  const int64_t work = op.logits.dim(1) * 8;
  pool_.for_ranges(op.logits.dim(0), row_grain(work), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(route_backward_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::RouterStatistics& op) {
  expect_f32(op.kName, {op.logits, op.load, op.importance, op.z, op.entropy});
  const int64_t tokens = op.logits.dim(0), experts = op.logits.dim(1);
  const int64_t blocks = (tokens + kTokenBlock - 1) / kTokenBlock, sums = experts + 2;
  // After the sums of every block come E floats of room for each.
  auto* partial = static_cast<double*>(
      shared_.get(0, blocks * (sums * int64_t{sizeof(double)} + experts * int64_t{sizeof(float)})));
  auto* room = reinterpret_cast<float*>(partial + blocks * sums);
  const int64_t grain = std::max<int64_t>(1, row_grain(experts * 8) / kTokenBlock);
  pool_.for_ranges(blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t end = std::min(tokens, (b + 1) * kTokenBlock);
      HWY_DYNAMIC_DISPATCH(router_sums)
      (op, b * kTokenBlock, end, partial + b * sums, room + b * experts);
    }
  });
  int64_t counted = 0;
  for (int64_t n = 0; n < tokens; ++n) counted += !is_padding(op.positions, n);
  const auto count = static_cast<double>(std::max<int64_t>(counted, 1));
  const auto mean = [&](int64_t i) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[b * sums + i];
    return static_cast<float>(sum / count);
  };
  const int32_t* offsets = op.offsets.as<int32_t>();
  for (int64_t e = 0; e < experts; ++e) {
    const double assigned = offsets[e + 1] - offsets[e];
    op.load.as<float>()[e] = static_cast<float>(assigned / count);
    op.importance.as<float>()[e] = mean(e);
  }
  op.z.as<float>()[0] = mean(experts);
  op.entropy.as<float>()[0] = mean(experts + 1);
}

void CpuBackend::run(const ops::BalanceLoss& op) {
  expect_f32(op.kName, {op.load, op.importance, op.z, op.losses, op.dprobability});
  const int64_t layers = op.load.dim(0), experts = op.load.dim(1);
  const float* load = op.load.as<float>();
  const float* importance = op.importance.as<float>();
  const auto depth = static_cast<double>(layers), width = static_cast<double>(experts);
  const auto mean = [&](const float* x, int64_t e) {
    double sum = 0;
    for (int64_t l = 0; l < layers; ++l) sum += static_cast<double>(x[l * experts + e]);
    return sum / depth;
  };
  double aux = 0, z = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const double mean_load = mean(load, e);
    if (op.pooled) aux += width * mean_load * mean(importance, e);
    for (int64_t l = 0; l < layers; ++l) {
      const auto at = l * experts + e;
      const double own = static_cast<double>(load[at]);
      if (!op.pooled) aux += width * own * static_cast<double>(importance[at]) / depth;
      if (!op.dprobability) continue;
      op.dprobability.as<float>()[at] =
          static_cast<float>(op.coefficient * width * (op.pooled ? mean_load : own) /
                             (depth * static_cast<double>(op.tokens)));
    }
  }
  for (int64_t l = 0; l < layers; ++l) z += static_cast<double>(op.z.as<float>()[l]) / depth;
  op.losses.as<float>()[0] = static_cast<float>(aux);
  op.losses.as<float>()[1] = static_cast<float>(z);
}

void CpuBackend::run(const ops::GatherRows& op) {
  const int64_t bytes = op.x.dim(1) * size_of(op.x.dtype());
  const auto* x = static_cast<const std::byte*>(op.x.data());
  auto* y = static_cast<std::byte*>(op.y.data());
  const int32_t* source = op.source.as<int32_t>();
  pool_.for_ranges(op.y.dim(0), row_grain(op.x.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(y + r * bytes, x + source[r] / op.divisor * bytes, static_cast<size_t>(bytes));
  });
}

void CpuBackend::run(const ops::CombineRows& op) {
  expect_f32(op.kName, {op.y, op.residual, op.out});
  pool_.for_ranges(op.out.dim(0), row_grain(op.out.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(combine_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::SwiGlu& op) {
  expect_f32(op.kName, {op.gate_up, op.weights, op.h});
  pool_.for_ranges(op.h.dim(0), row_grain(2 * op.h.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(swiglu_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::SwiGluBackward& op) {
  expect_f32(op.kName, {op.gate_up, op.weights, op.dh, op.d_gate_up, op.dweights, op.h});
  pool_.for_ranges(op.dh.dim(0), row_grain(4 * op.dh.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(swiglu_backward_rows)(op, begin, end);
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
