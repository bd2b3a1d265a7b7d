// Elementary functions of sixteen floats, the same operations on every instruction set.
// Accuracy (tests/ops/cpu_simd_test.cc, a float in 509): exponentials within 1.05 ulp, sigmoid
// within 2.5, logarithm within 1.5, cosine of turns within 1.2e-7.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_SIMD_MATH_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_SIMD_MATH_H_
#undef MIXTRAL_CPU_SIMD_MATH_H_
#else
#define MIXTRAL_CPU_SIMD_MATH_H_
#endif

#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {

/// Adding it rounds a float below 2^22 to an integer, which is then in the low bits of the sum.
inline constexpr float kRounder = 0x1.8p23f;

/// 2ⁿ for −126 <= n <= 127, from n + kRounder.
HWY_INLINE Floats power_of_two(const Floats& shifted) {
  return as_floats(shift_left<23>(as_words(shifted)) + as_words(broadcast(1)));
}

/// eʳ for |r| <= ln(2) / 2, exactly 1 at 0.
HWY_INLINE Floats exponential_of_rest(const Floats& r) {
  // 1 + r + r² q(r); q by Remez' algorithm, relative error 3.1e-9.
  Floats q = multiply_add(r, broadcast(1.3814190962369891e-3f), broadcast(8.368913683914772e-3f));
  q = multiply_add(q, r, broadcast(4.166840718199044e-2f));
  q = multiply_add(q, r, broadcast(1.6666519005799568e-1f));
  q = multiply_add(q, r, broadcast(4.9999993338042464e-1f));
  return multiply_add(r * r, q, r) + broadcast(1);
}

/// eˣ: 0 at −∞, ∞ above 88.72, subnormal results included, NaN for NaN.
HWY_INLINE Floats exponential(Floats x) {
  // Beyond these the result is 0 or ∞ anyway. A NaN fails both comparisons and passes through.
  x = select(less(x, broadcast(-104.f)), broadcast(-104.f), x);
  x = select(less(broadcast(89.f), x), broadcast(89.f), x);
  const Floats shifted = multiply_add(x, broadcast(0x1.715476p0f), broadcast(kRounder));
  const Floats n = shifted - broadcast(kRounder);
  Floats r = subtract_product(x, n, broadcast(0x1.62e43p-1f));
  r = subtract_product(r, n, broadcast(-0x1.05c61p-29f));
  const Floats e = exponential_of_rest(r);
  // 2ⁿ in two factors: n may be from −150 to 128.
  const Words whole = as_words(shifted) - as_words(broadcast(kRounder));
  const Words half = shift_right_signed<1>(whole);
  const Words bias = broadcast_word(127);
  const Floats first = as_floats(shift_left<23>(half + bias));
  const Floats second = as_floats(shift_left<23>(whole - half + bias));
  return e * first * second;
}

/// eˣ for x <= 0, exactly 1 at 0; 0 below −87.33 (results are normal), NaN for NaN.
HWY_INLINE Floats exponential_nonpositive(const Floats& x) {
  const Mask tiny = less(x, broadcast(-87.33f));
  const Floats shifted = multiply_add(x, broadcast(0x1.715476p0f), broadcast(kRounder));
  const Floats n = shifted - broadcast(kRounder);
  Floats r = subtract_product(x, n, broadcast(0x1.62e43p-1f));
  r = subtract_product(r, n, broadcast(-0x1.05c61p-29f));
  const Floats e = exponential_of_rest(r);
  return select(tiny, broadcast(0), e * power_of_two(shifted));
}

/// 2ˣ for x < 128, exactly 1 at 0; 0 below −126 (results are normal), NaN for NaN.
HWY_INLINE Floats exponential2(const Floats& x) {
  const Mask tiny = less(x, broadcast(-126.f));
  const Floats shifted = x + broadcast(kRounder);
  const Floats r = x - (shifted - broadcast(kRounder));
  // 2ʳ = 1 + r q(r) on |r| <= 1/2; relative error 2.0e-9.
  Floats q = multiply_add(r, broadcast(1.5353362068711238e-4f), broadcast(1.3398874393980092e-3f));
  q = multiply_add(q, r, broadcast(9.618437356958043e-3f));
  q = multiply_add(q, r, broadcast(5.5503324711908913e-2f));
  q = multiply_add(q, r, broadcast(2.4022647913636838e-1f));
  q = multiply_add(q, r, broadcast(6.931472028550315e-1f));
  const Floats e = multiply_add(q, r, broadcast(1));
  return select(tiny, broadcast(0), e * power_of_two(shifted));
}

/// 1 / (1 + e⁻ˣ)
HWY_INLINE Floats sigmoid(const Floats& x) {
  return broadcast(1) / (broadcast(1) + exponential(broadcast(0) - x));
}

/// log x for normal x > 0.
HWY_INLINE Floats logarithm(const Floats& x) {
  // x = m · 2ᵉ with m in [√½, √2)
  const Words bits = as_words(x);
  const Words e = shift_right_signed<23>(bits - broadcast_word(0x3f3504f3));
  const Floats m = as_floats(bits - shift_left<23>(e));
  // log m = 2 artanh(s), s = (m − 1) / (m + 1), |s| <= 0.172; the series to s⁹.
  const Floats f = m - broadcast(1);
  const Floats s = f / (f + broadcast(2));
  const Floats z = s * s;
  Floats p = multiply_add(z, broadcast(2.f / 9), broadcast(2.f / 7));
  p = multiply_add(p, z, broadcast(2.f / 5));
  p = multiply_add(p, z, broadcast(2.f / 3));
  // 2 s = f − s f, so that the leading term is exact.
  const Floats tail = multiply_add(z * s, p, broadcast(0) - s * f);
  const Floats whole = to_floats(e);
  const Floats low = multiply_add(whole, broadcast(-0x1.05c61p-29f), tail);
  return multiply_add(whole, broadcast(0x1.62e43p-1f), f + low);
}

/// cos(2πu) for 0 <= u < 1.
HWY_INLINE Floats cosine_of_turns(const Floats& u) {
  const Floats shifted = multiply_add(u, broadcast(4), broadcast(kRounder));
  const Words quadrant = as_words(shifted);
  // Exact: the angle is at most an eighth of a turn from a multiple of a quarter.
  const Floats rest = subtract_product(u, shifted - broadcast(kRounder), broadcast(0.25f));
  const Floats a = rest * broadcast(0x1.921fb6p2f);
  const Floats z = a * a;
  Floats c = multiply_add(z, broadcast(-1.f / 3628800), broadcast(1.f / 40320));
  c = multiply_add(c, z, broadcast(-1.f / 720));
  c = multiply_add(c, z, broadcast(1.f / 24));
  c = multiply_add(c, z, broadcast(-1.f / 2));
  c = multiply_add(c, z, broadcast(1));
  Floats s = multiply_add(z, broadcast(1.f / 362880), broadcast(-1.f / 5040));
  s = multiply_add(s, z, broadcast(1.f / 120));
  s = multiply_add(s, z, broadcast(-1.f / 6));
  s = multiply_add(s * z, a, a);
  // Quarters 0, 1, 2, 3: cos, −sin, −cos, sin.
  const Mask odd = less_signed(broadcast_word(0), quadrant & broadcast_word(1));
  const Words sign = shift_left<30>((quadrant + broadcast_word(1)) & broadcast_word(2));
  return as_floats(as_words(select(odd, s, c)) ^ sign);
}

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
