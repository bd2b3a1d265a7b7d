#include "ops/scale_search.h"

#include <algorithm>
#include <array>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scale_search.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace mixtral::ops::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kMostTrials = 16;  // a multiple of all vectors' lanes

using TrialTag = hn::CappedTag<float, 8>;
using Trials = hn::Vec<TrialTag>;

/// One number a trial; those beyond the last trial are never looked at.
using PerTrial = std::array<float, kMostTrials>;

HWY_INLINE Trials all(float value) { return hn::Set(TrialTag(), value); }
HWY_INLINE Trials load(const PerTrial& from, size_t at) {
  return hn::LoadU(TrialTag(), from.data() + at);
}
HWY_INLINE void store(Trials value, PerTrial& to, size_t at) {
  hn::StoreU(value, TrialTag(), to.data() + at);
}

/// a / b, and 0 where b is not positive.
HWY_INLINE Trials divide_by_positive(Trials a, Trials b) {
  return hn::IfThenElseZero(hn::Gt(b, hn::Zero(TrialTag())), hn::Div(a, b));
}

/// The codes of a number, to which the minimum is added: from 0, so that cutting off what is behind
/// the point rounds down.
HWY_INLINE Trials affine_codes(Trials raised, Trials inverse, Trials top) {
  const Trials at = hn::Add(hn::Mul(raised, inverse), all(0.5f));
  return hn::Floor(hn::Min(hn::Max(at, hn::Zero(TrialTag())), top));
}

/// The weighted squared errors of scales and minima.
void affine_errors(const float* x, const float* w, int levels, size_t count, const PerTrial& scales,
                   const PerTrial& minima, PerTrial& errors) {
  const Trials top = all(static_cast<float>(levels) + 0.5f);
  for (size_t t = 0; t < count; t += hn::Lanes(TrialTag())) {
    const Trials scale = load(scales, t), minimum = load(minima, t);
    const Trials inverse = divide_by_positive(all(1), scale);
    Trials error = hn::Zero(TrialTag());
    for (size_t i = 0; i < kAffineBlock; ++i) {
      const Trials raised = hn::Add(all(x[i]), minimum);
      const Trials off = hn::Sub(hn::Mul(scale, affine_codes(raised, inverse, top)), raised);
      error = hn::Add(error, hn::Mul(hn::Mul(all(w[i]), off), off));
    }
    store(error, errors, t);
  }
}

/// Replaces scales and minima by the best for the codes that they give: weighted least squares,
/// where the minimum may not be negative.
void fit_affine(const float* x, const float* w, int levels, size_t count, PerTrial& scales,
                PerTrial& minima) {
  const Trials zero = hn::Zero(TrialTag()), top = all(static_cast<float>(levels) + 0.5f);
  std::array<float, kAffineBlock> weighted;
  float plain_w = 0, plain_x = 0;
  for (size_t i = 0; i < kAffineBlock; ++i) {
    weighted[i] = w[i] * x[i];
    plain_w += w[i];
    plain_x += weighted[i];
  }
  const Trials sum_w = all(plain_w), sum_x = all(plain_x);
  for (size_t t = 0; t < count; t += hn::Lanes(TrialTag())) {
    const Trials minimum = load(minima, t);
    const Trials inverse = divide_by_positive(all(1), load(scales, t));
    Trials sum_q = zero, sum_qq = zero, sum_xq = zero;
    for (size_t i = 0; i < kAffineBlock; ++i) {
      const Trials code = affine_codes(hn::Add(all(x[i]), minimum), inverse, top);
      const Trials wq = hn::Mul(all(w[i]), code);
      sum_q = hn::Add(sum_q, wq);
      sum_qq = hn::Add(sum_qq, hn::Mul(wq, code));
      sum_xq = hn::Add(sum_xq, hn::Mul(all(weighted[i]), code));
    }
    const Trials determinant = hn::Sub(hn::Mul(sum_w, sum_qq), hn::Mul(sum_q, sum_q));
    const Trials of_scale = hn::Sub(hn::Mul(sum_w, sum_xq), hn::Mul(sum_x, sum_q));
    const Trials of_minimum = hn::Sub(hn::Mul(sum_q, sum_xq), hn::Mul(sum_qq, sum_x));
    const Trials least = hn::Div(of_minimum, determinant);
    // Not "least >= 0": numbers too large to be squared leave no number here.
    const auto both = hn::AndNot(hn::Lt(least, zero), hn::Gt(determinant, zero));
    const Trials scale =
        hn::IfThenElse(both, hn::Div(of_scale, determinant), divide_by_positive(sum_xq, sum_qq));
    const auto usable = hn::Gt(scale, zero);
    store(hn::IfThenElseZero(usable, scale), scales, t);
    store(hn::IfThenElseZero(hn::And(usable, both), least), minima, t);
  }
}

AffineScale search_affine(const float* x, const float* w, int levels) {
  constexpr int kSteps = 7;  // to either side
  constexpr float kStep = 0.35f;
  constexpr size_t kCount = 2 * kSteps + 1;
  const auto [low, high] = std::minmax_element(x, x + kAffineBlock);
  const float least = std::min(*low, 0.f), range = *high - least;
  if (!(range > 0)) return {0, -least};
  PerTrial scales{}, minima, errors{};
  minima.fill(-least);
  for (int i = 0; i <= 2 * kSteps; ++i)
    scales[static_cast<size_t>(i)] =
        range / (static_cast<float>(levels) + kStep * static_cast<float>(i - kSteps));
  fit_affine(x, w, levels, kCount, scales, minima);
  // One trial more: all numbers alike.
  scales[kCount] = 0;
  minima[kCount] = -least;
  affine_errors(x, w, levels, kCount + 1, scales, minima, errors);
  size_t best = kCount;
  for (size_t t = 0; t < kCount; ++t)
    if (errors[t] < errors[best]) best = t;
  return {scales[best], minima[best]};
}

/// The least error. The first of equals; one that is no number is least of none.
Trial least_of(const PerTrial& errors, size_t count) {
  size_t best = 0;
  for (size_t t = 1; t < count; ++t)
    if (errors[t] < errors[best] || !(errors[best] >= 0)) best = t;
  return {best, errors[best]};
}

Trial best_affine(const float* x, const float* w, int levels, const AffineScale* trials,
                  size_t count) {
  PerTrial scales{}, minima{}, errors{};
  for (size_t t = 0; t < count; ++t) {
    scales[t] = trials[t].scale;
    minima[t] = trials[t].minimum;
  }
  affine_errors(x, w, levels, count, scales, minima, errors);
  return least_of(errors, count);
}

AffineSums affine_sums(const float* x, const float* w, int levels, AffineScale scale) {
  // Numbers are lanes here, in as many partial sums for each instruction set.
  constexpr size_t kParts = 8;
  using Tag = hn::CappedTag<float, kParts>;
  using Vector = hn::Vec<Tag>;
  std::array<std::array<float, kParts>, 5> parts;
  const Tag tag;
  const float inverse = scale.scale > 0 ? 1 / scale.scale : 0;
  const Vector zero = hn::Zero(tag), top = hn::Set(tag, static_cast<float>(levels) + 0.5f);
  for (size_t part = 0; part < kParts; part += hn::Lanes(tag)) {
    Vector sum_w = zero, sum_x = zero, sum_q = zero, sum_qq = zero, sum_xq = zero;
    for (size_t i = part; i < kAffineBlock; i += kParts) {
      const Vector number = hn::LoadU(tag, x + i), weight = hn::LoadU(tag, w + i);
      const Vector at =
          hn::Add(hn::Mul(hn::Add(number, hn::Set(tag, scale.minimum)), hn::Set(tag, inverse)),
                  hn::Set(tag, 0.5f));
      const Vector code = hn::Floor(hn::Min(hn::Max(at, zero), top));
      const Vector wq = hn::Mul(weight, code);
      sum_w = hn::Add(sum_w, weight);
      sum_x = hn::Add(sum_x, hn::Mul(weight, number));
      sum_q = hn::Add(sum_q, wq);
      sum_qq = hn::Add(sum_qq, hn::Mul(wq, code));
      sum_xq = hn::Add(sum_xq, hn::Mul(wq, number));
    }
    hn::StoreU(sum_w, tag, parts[0].data() + part);
    hn::StoreU(sum_x, tag, parts[1].data() + part);
    hn::StoreU(sum_q, tag, parts[2].data() + part);
    hn::StoreU(sum_qq, tag, parts[3].data() + part);
    hn::StoreU(sum_xq, tag, parts[4].data() + part);
  }
  AffineSums sums;
  for (size_t part = 0; part < kParts; ++part) {
    sums.w += parts[0][part];
    sums.x += parts[1][part];
    sums.q += parts[2][part];
    sums.qq += parts[3][part];
    sums.xq += parts[4][part];
  }
  return sums;
}

/// The codes of a number, less that of 0.
HWY_INLINE Trials signed_codes(float x, Trials inverse, float zero) {
  const Trials at = hn::Add(hn::Mul(all(x), inverse), all(zero + 0.5f));
  const Trials code = hn::Floor(hn::Min(hn::Max(at, hn::Zero(TrialTag())), all(2 * zero - 0.5f)));
  return hn::Sub(code, all(zero));
}

HWY_INLINE Trials inverse_of(Trials scale) {
  return hn::IfThenZeroElse(hn::Eq(scale, hn::Zero(TrialTag())), hn::Div(all(1), scale));
}

void signed_errors(SignedBlock block, const float* x, const float* w, size_t count,
                   const PerTrial& scales, PerTrial& errors) {
  const auto zero = static_cast<float>(block.zero);
  for (size_t t = 0; t < count; t += hn::Lanes(TrialTag())) {
    const Trials scale = load(scales, t), inverse = inverse_of(scale);
    Trials error = hn::Zero(TrialTag());
    for (size_t i = 0; i < block.size; ++i) {
      const Trials off = hn::Sub(hn::Mul(scale, signed_codes(x[i], inverse, zero)), all(x[i]));
      error = hn::Add(error, hn::Mul(hn::Mul(all(w[i]), off), off));
    }
    store(error, errors, t);
  }
}

/// Replaces scales by the best for the codes that they give.
void fit_signed(SignedBlock block, const float* x, const float* w, size_t count, PerTrial& scales) {
  const auto zero = static_cast<float>(block.zero);
  for (size_t t = 0; t < count; t += hn::Lanes(TrialTag())) {
    const Trials inverse = inverse_of(load(scales, t));
    Trials sum_qq = hn::Zero(TrialTag()), sum_xq = sum_qq;
    for (size_t i = 0; i < block.size; ++i) {
      const Trials code = signed_codes(x[i], inverse, zero);
      sum_qq = hn::Add(sum_qq, hn::Mul(hn::Mul(all(w[i]), code), code));
      sum_xq = hn::Add(sum_xq, hn::Mul(all(w[i] * x[i]), code));
    }
    store(divide_by_positive(sum_xq, sum_qq), scales, t);
  }
}

float search_signed(SignedBlock block, const float* x, const float* w) {
  constexpr int kSteps = 7;  // to either side
  constexpr float kStep = 0.7f;
  constexpr size_t kCount = 2 * kSteps + 1;
  float most = 0;
  for (size_t i = 0; i < block.size; ++i)
    if (std::abs(x[i]) > std::abs(most)) most = x[i];
  if (most == 0) return 0;
  PerTrial scales{}, errors{};
  for (int i = 0; i <= 2 * kSteps; ++i)
    scales[static_cast<size_t>(i)] =
        most / (-static_cast<float>(block.zero) - kStep * static_cast<float>(i - kSteps));
  fit_signed(block, x, w, kCount, scales);
  signed_errors(block, x, w, kCount, scales, errors);
  return scales[least_of(errors, kCount).place];
}

Trial best_signed(SignedBlock block, const float* x, const float* w, const float* trials,
                  size_t count) {
  PerTrial scales{}, errors{};
  std::copy_n(trials, count, scales.data());
  signed_errors(block, x, w, count, scales, errors);
  return least_of(errors, count);
}

}  // namespace
}  // namespace mixtral::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::ops {

HWY_EXPORT(search_affine);
HWY_EXPORT(affine_sums);
HWY_EXPORT(best_affine);
HWY_EXPORT(search_signed);
HWY_EXPORT(best_signed);

int signed_code(SignedBlock block, float x, float scale) {
  const auto zero = static_cast<float>(block.zero);
  const float inverse = scale != 0 ? 1 / scale : 0;
  return static_cast<int>(std::clamp(x * inverse + (zero + 0.5f), 0.f, 2 * zero - 0.5f));
}
AffineScale search_affine(const float* x, const float* w, int levels) {
  return HWY_DYNAMIC_DISPATCH(search_affine)(x, w, levels);
}
AffineSums affine_sums(const float* x, const float* w, int levels, AffineScale scale) {
  return HWY_DYNAMIC_DISPATCH(affine_sums)(x, w, levels, scale);
}
Trial best_affine(const float* x, const float* w, int levels, const AffineScale* trials,
                  size_t count) {
  return HWY_DYNAMIC_DISPATCH(best_affine)(x, w, levels, trials, count);
}
float search_signed(SignedBlock block, const float* x, const float* w) {
  return HWY_DYNAMIC_DISPATCH(search_signed)(block, x, w);
}
Trial best_signed(SignedBlock block, const float* x, const float* w, const float* trials,
                  size_t count) {
  return HWY_DYNAMIC_DISPATCH(best_signed)(block, x, w, trials, count);
}

}  // namespace mixtral::ops
#endif
