// The optimizer: one pass over value, gradient and state (28 bytes a parameter with f32 state, 20
// with bf16), bound by memory.

#include "ops/optim.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/optim.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"
#include "cpu/simd_philox.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

/// Σ x² in f64: element i goes to sum i mod 32; the 32 are added in order.
double squared_norm(const float* x, int64_t n) {
  constexpr int kSums = 32;
  using Doubles = hn::CappedTag<double, 8>;
  using Singles = hn::Rebind<float, Doubles>;
  constexpr int kWidth = static_cast<int>(hn::MaxLanes(Doubles()));
  const Doubles tag;
  hn::Vec<Doubles> sum[kSums / kWidth];
  for (auto& s : sum) s = hn::Zero(tag);
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums / kWidth; ++j) {
      const auto v = hn::PromoteTo(tag, hn::LoadU(Singles(), x + i + j * kWidth));
      sum[j] = hn::MulAdd(v, v, sum[j]);
    }
  }
  double lanes[kSums];
  for (int j = 0; j < kSums / kWidth; ++j) hn::StoreU(sum[j], tag, lanes + j * kWidth);
  // A square of a float is exact in f64, so fused or not makes no difference.
  for (int j = 0; i < n; ++i, ++j)
    lanes[j] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

/// The scalars of an update, in f32.
struct Rates {
  explicit Rates(const ops::AdamW& op) {
    const double* schedule = op.schedule.as<double>();
    const double norm = std::sqrt(op.squared_norm.as<double>()[0]);
    shrink = static_cast<float>(op.clip > 0 ? std::min(1.0, op.clip / (norm + 1e-6)) : 1.0);
    beta1 = static_cast<float>(op.beta1);
    rest1 = static_cast<float>(1 - op.beta1);
    beta2 = static_cast<float>(op.beta2);
    rest2 = static_cast<float>(1 - op.beta2);
    decay = static_cast<float>(schedule[0] * op.weight_decay);
    rate = static_cast<float>(schedule[0] / schedule[1]);
    inverse2 = static_cast<float>(1 / schedule[2]);
    eps = static_cast<float>(op.eps);
    step = static_cast<uint64_t>(schedule[3]);
  }

  float shrink, beta1, rest1, beta2, rest2, decay, rate, inverse2, eps;
  uint64_t step;
};

/// Rounded to bf16 with the low 16 bits of `random` (ops::round_stochastically), in low halves.
HWY_INLINE Words round_stochastically(const Floats& a, const Words& random) {
  const Words bits = as_words(a);
  const Words magnitude = bits & broadcast_word(0x7fffffff);
  const Words rounded = shift_right<16>(bits + (random & broadcast_word(0xffff)));
  return select(less_signed(magnitude, broadcast_word(0x7f800000)), rounded, to_bf16(a));
}

HWY_INLINE void store_halves_n(const Words& a, bf16* p, int64_t count) {
  if (count >= kLanes) return store_halves(a, &p->bits);
  uint16_t lanes[kLanes];
  store_halves(a, lanes);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(bf16));
}

template <class State, bool has_model>
void update(const ops::AdamW& op, const Rates& rates, int64_t begin, int64_t end) {
  float* value = op.value.as<float>();
  const float* grad = op.grad.as<float>();
  State* m = op.m.as<State>();
  State* v = op.v.as<State>();
  bf16* model = has_model ? op.model.as<bf16>() : nullptr;
  const Floats shrink = broadcast(rates.shrink), beta1 = broadcast(rates.beta1);
  const Floats rest1 = broadcast(rates.rest1), beta2 = broadcast(rates.beta2);
  const Floats rest2 = broadcast(rates.rest2), decay = broadcast(rates.decay);
  const Floats rate = broadcast(rates.rate), inverse2 = broadcast(rates.inverse2);
  const Floats eps = broadcast(rates.eps);
  const PhiloxKey key(op.seed);
  for_lanes(end - begin, [&](int64_t offset, int64_t count) HWY_ATTR {
    const int64_t i = begin + offset;
    const Floats g = load_n(grad + i, count) * shrink;
    const Floats new_m = multiply_add(rest1, g, beta1 * load_n(m + i, count));
    const Floats new_v = multiply_add(rest2, g * g, beta2 * load_n(v + i, count));
    const Floats before = load_n(value + i, count);
    const Floats decayed = subtract_product(before, decay, before);
    const Floats root = square_root(new_v * inverse2) + eps;
    const Floats after = subtract_product(decayed, rate, new_m / root);
    store_n(after, value + i, count);
    if constexpr (std::is_same_v<State, bf16>) {
      const RandomWords words = philox16(key, rates.step, static_cast<uint64_t>(i));
      store_halves_n(round_stochastically(new_m, words.word[0]), m + i, count);
      store_halves_n(round_stochastically(new_v, words.word[1]), v + i, count);
    } else {
      store_n(new_m, m + i, count);
      store_n(new_v, v + i, count);
    }
    if constexpr (has_model) store_n(after, model + i, count);
  });
}

void update_range(const ops::AdamW& op, int64_t begin, int64_t end) {
  const Rates rates(op);
  if (op.m.dtype() == Dtype::f32)
    op.model ? update<float, true>(op, rates, begin, end)
             : update<float, false>(op, rates, begin, end);
  else
    op.model ? update<bf16, true>(op, rates, begin, end)
             : update<bf16, false>(op, rates, begin, end);
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(squared_norm);
HWY_EXPORT(update_range);

constexpr int64_t kBlock = 32768;  // elements; a multiple of 32
constexpr int64_t kGrain = 8192;   // elements; a multiple of 16

}  // namespace

void CpuBackend::run(const ops::SquaredNorm& op) {
  expect_f32(op.kName, {op.x});
  const float* x = op.x.as<float>();
  const int64_t n = op.x.numel(), blocks = (n + kBlock - 1) / kBlock;
  auto* partial = static_cast<double*>(shared_.get(0, (blocks + 1) * int64_t{sizeof(double)}));
  pool_.for_ranges(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kBlock;
      partial[b] = HWY_DYNAMIC_DISPATCH(squared_norm)(x + begin, std::min(n - begin, kBlock));
    }
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partial[b];
  double& sum = op.sum.as<double>()[0];
  sum = (op.accumulate ? sum : 0.0) + total;
}

void CpuBackend::run(const ops::AdamW& op) {
  expect_f32(op.kName, {op.value, op.grad});
  if (!std::isfinite(op.squared_norm.as<double>()[0])) return;
  pool_.for_ranges(op.value.numel(), kGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(update_range)(op, begin, end);
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
