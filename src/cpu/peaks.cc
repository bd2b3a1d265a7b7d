#include "cpu/peaks.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "base/threads.h"
#include "cpu/integer_matmul.h"
#include "cpu/matmul_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/peaks.cc"
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// Twelve chains of multiply-adds. Returns the multiply-adds of a step.
int64_t spin_floats(int64_t steps) {
  constexpr int kChains = 12;
  const hn::ScalableTag<float> f;
  auto a = hn::Set(f, 0.999f), b = hn::Set(f, 0.001f);
  hn::Vec<decltype(f)> sums[kChains];
  for (auto& sum : sums) sum = b;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = hn::MulAdd(sum, a, b);
  }
  asm volatile("" : : "m"(sums));
  return kChains * static_cast<int64_t>(hn::Lanes(f));
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(spin_floats);

using Clock = std::chrono::steady_clock;
using Spin = int64_t (*)(int64_t steps);

constexpr double kRun = 2e-3;     // seconds of a run: short, so that some are not interrupted
constexpr double kSeconds = 0.1;  // of all runs, the clock's warming up among them

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Operations a second of one thread.
double best_rate(Spin spin) {
  const int64_t each = spin(1);
  int64_t steps = 1 << 10;
  double best = 0;
  for (const auto begin = Clock::now(); seconds_since(begin) < kSeconds;) {
    const auto start = Clock::now();
    spin(steps);
    const double seconds = seconds_since(start);
    best = std::max(best, 2 * static_cast<double>(each) * static_cast<double>(steps) / seconds);
    if (seconds < kRun) steps *= 2;
  }
  return best;
}

/// Of all threads at the same time.
double best_rate(ThreadPool& pool, Spin spin) {
  std::vector<double> rates(static_cast<size_t>(pool.size()));
  pool.for_each(pool.size(),
                [&](int64_t i, int) { rates[static_cast<size_t>(i)] = best_rate(spin); });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace

Peaks measure_peaks(int threads) {
  ThreadPool pool(threads);
  Peaks peaks;
  peaks.f32 = best_rate(pool, HWY_DYNAMIC_DISPATCH(spin_floats));
  peaks.bf16 = bf16_kernels() ? best_rate(pool, kSpinPairs) : peaks.f32;
  if (const IntegerKernels* kernels = integer_kernels())
    peaks.int8 = best_rate(pool, kernels->spin);
  return peaks;
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
