// Elementwise ops: one pass over memory, which bounds all of them but the random numbers.

#include "ops/elementwise.h"

#include <cmath>
#include <cstring>

#include "base/random.h"
#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"
#include "cpu/simd_math.h"
#include "cpu/simd_philox.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

template <class X, class Y>
void convert(const X* x, Y* y, int64_t n) {
  for_lanes(
      n, [&](int64_t i, int64_t count) HWY_ATTR { store_n(load_n(x + i, count), y + i, count); });
}

void convert_range(const ops::Convert& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class X>(X) {
    with_type(op.y.dtype(), [&]<class Y>(Y) {
      convert(op.x.as<X>() + begin, op.y.as<Y>() + begin, end - begin);
    });
  });
}

template <class X, class Y>
void add_scaled(const X* x, Y* y, int64_t n, float factor) {
  const Floats scale = broadcast(factor);
  for_lanes(n, [&](int64_t i, int64_t count) HWY_ATTR {
    store_n(multiply_add(load_n(x + i, count), scale, load_n(y + i, count)), y + i, count);
  });
}

void add_scaled_range(const ops::AddScaled& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class X>(X) {
    with_type(op.y.dtype(), [&]<class Y>(Y) {
      add_scaled(op.x.as<X>() + begin, op.y.as<Y>() + begin, end - begin,
                 static_cast<float>(op.scale));
    });
  });
}

/// 32 numbers from 16 counters; `begin` is a multiple of 32.
template <class T>
void random_normal(T* x, int64_t begin, int64_t end, const ops::RandomNormal& op) {
  const PhiloxKey key(op.seed);
  const Floats deviation = broadcast(static_cast<float>(op.deviation));
  for (int64_t i = begin; i < end; i += 2 * kLanes) {
    const RandomWords w = philox16(key, op.stream, static_cast<uint64_t>(i / 2));
    Floats pair[2];
    for (int j = 0; j < 2; ++j) {
      const Floats log = logarithm(unit_floats_open(w.word[2 * j]));
      const Floats radius = square_root(broadcast(-2) * log);
      pair[j] = deviation * radius * cosine_of_turns(unit_floats(w.word[2 * j + 1]));
    }
    float numbers[2 * kLanes];
    for (int p = 0; p < kParts; ++p)
      hn::StoreInterleaved2(pair[0].part[p], pair[1].part[p], FloatTag(),
                            numbers + 2 * p * kPartLanes);
    store_n(load(numbers), x + i, end - i);
    if (i + kLanes < end) store_n(load(numbers + kLanes), x + i + kLanes, end - i - kLanes);
  }
}

void random_normal_range(const ops::RandomNormal& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class T>(T) { random_normal(op.x.as<T>(), begin, end, op); });
}

/// 64 elements from 16 counters; `begin` is a multiple of 64.
template <class T>
void dropout(const T* x, T* y, int64_t begin, int64_t end, const ops::Dropout& op) {
  // unit_float(w) >= p exactly when its 24 bits are at least ceil(p · 2²⁴).
  const auto threshold = static_cast<uint32_t>(std::ceil(op.probability * 0x1p24));
  const PhiloxKey key(static_cast<uint64_t>(*op.seed.as<int64_t>()));
  const Words least = broadcast_word(threshold);
  const Floats keep = broadcast(static_cast<float>(1 / (1 - op.probability)));
  for (int64_t i = begin; i < end; i += 4 * kLanes) {
    const RandomWords w = philox16(key, op.stream, static_cast<uint64_t>(i / 4));
    float factors[4 * kLanes];
    Floats f[4];
    for (int j = 0; j < 4; ++j)
      f[j] = select(less_signed(shift_right<8>(w.word[j]), least), broadcast(0), keep);
    for (int p = 0; p < kParts; ++p)
      hn::StoreInterleaved4(f[0].part[p], f[1].part[p], f[2].part[p], f[3].part[p], FloatTag(),
                            factors + 4 * p * kPartLanes);
    for (int j = 0; j < 4; ++j) {
      const int64_t at = i + j * kLanes;
      if (at >= end) break;
      const Floats factor = load(factors + j * kLanes);
      // Selected, not multiplied: a dropped infinity is 0.
      const Floats kept = load_n(x + at, end - at) * factor;
      store_n(select(less(broadcast(0), factor), kept, broadcast(0)), y + at, end - at);
    }
  }
}

void dropout_range(const ops::Dropout& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class T>(T) { dropout(op.x.as<T>(), op.y.as<T>(), begin, end, op); });
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(convert_range);
HWY_EXPORT(add_scaled_range);
HWY_EXPORT(random_normal_range);
HWY_EXPORT(dropout_range);

constexpr int64_t kGrain = 16384;  // elements; a multiple of what one step of any op takes

void expect_narrow(std::string_view op, const Tensor& tensor) {
  if (tensor.dtype() == Dtype::f64) refuse_type(op, "tensors", tensor);
}

/// A value of f64 rounded to f32 so that rounding it again, to 16 bits, gives the nearest: inexact
/// values end in an odd bit, which keeps them on their side of every tie.
float round_to_odd(double value) {
  auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || !std::isfinite(nearest)) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

template <class T>
double widen(T value) {
  return static_cast<double>(static_cast<float>(value));
}

double get(const Tensor& x, int64_t i) {
  if (x.dtype() == Dtype::f64) return x.as<double>()[i];
  if (x.dtype() == Dtype::f32) return widen(x.as<float>()[i]);
  return x.dtype() == Dtype::bf16 ? widen(x.as<bf16>()[i]) : widen(x.as<f16>()[i]);
}

void set(const Tensor& x, int64_t i, double value) {
  if (x.dtype() == Dtype::f64)
    x.as<double>()[i] = value;
  else if (x.dtype() == Dtype::f32)
    x.as<float>()[i] = static_cast<float>(value);
  else if (x.dtype() == Dtype::bf16)
    x.as<bf16>()[i] = bf16(round_to_odd(value));
  else
    x.as<f16>()[i] = f16(round_to_odd(value));
}

/// Conversions from and to f64, which are rare: of totals, and of a model for another backend.
void convert_wide(const ops::Convert& op, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) set(op.y, i, get(op.x, i));
}

void add_scaled_wide(const ops::AddScaled& op, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) set(op.y, i, get(op.y, i) + op.scale * get(op.x, i));
}

template <class T>
void fill(const Tensor& x, T value, int64_t begin, int64_t end) {
  std::fill(x.as<T>() + begin, x.as<T>() + end, value);
}

void fill_range(const ops::Fill& op, int64_t begin, int64_t end) {
  switch (op.x.dtype()) {
    case Dtype::f64:
      return fill(op.x, op.value, begin, end);
    case Dtype::f32:
      return fill(op.x, static_cast<float>(op.value), begin, end);
    case Dtype::bf16:
      return fill(op.x, bf16(round_to_odd(op.value)), begin, end);
    case Dtype::f16:
      return fill(op.x, f16(round_to_odd(op.value)), begin, end);
    case Dtype::i64:
      return fill(op.x, static_cast<int64_t>(op.value), begin, end);
    case Dtype::i32:
      return fill(op.x, static_cast<int32_t>(op.value), begin, end);
    case Dtype::u8:
      return fill(op.x, static_cast<uint8_t>(op.value), begin, end);
  }
}

}  // namespace

void CpuBackend::run(const ops::Fill& op) {
  pool_.for_ranges(op.x.numel(), kGrain,
                   [&](int64_t begin, int64_t end) { fill_range(op, begin, end); });
}

void CpuBackend::run(const ops::Convert& op) {
  if (op.x.dtype() == op.y.dtype()) {
    const int64_t size = size_of(op.x.dtype());
    auto* to = static_cast<std::byte*>(op.y.data());
    const auto* from = static_cast<const std::byte*>(op.x.data());
    if (to == from) return;
    pool_.for_ranges(op.x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      std::memmove(to + begin * size, from + begin * size,
                   static_cast<size_t>((end - begin) * size));
    });
    return;
  }
  const bool wide = op.x.dtype() == Dtype::f64 || op.y.dtype() == Dtype::f64;
  pool_.for_ranges(op.x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (wide)
      convert_wide(op, begin, end);
    else
      HWY_DYNAMIC_DISPATCH(convert_range)(op, begin, end);
  });
}

void CpuBackend::run(const ops::AddScaled& op) {
  const bool wide = op.x.dtype() == Dtype::f64 || op.y.dtype() == Dtype::f64;
  pool_.for_ranges(op.x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (wide)
      add_scaled_wide(op, begin, end);
    else
      HWY_DYNAMIC_DISPATCH(add_scaled_range)(op, begin, end);
  });
}

void CpuBackend::run(const ops::RandomNormal& op) {
  expect_narrow(op.kName, op.x);
  pool_.for_ranges(op.x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(random_normal_range)(op, begin, end);
  });
}

void CpuBackend::run(const ops::Dropout& op) {
  expect_narrow(op.kName, op.x);
  pool_.for_ranges(op.x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(dropout_range)(op, begin, end);
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
