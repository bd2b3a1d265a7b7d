// Sixteen logical lanes on every instruction set: 1 vector with AVX-512, 2 with AVX2, 4 with NEON.
// What a kernel adds up, and in which order, is written in terms of these lanes, so that its result
// is the same, bit for bit, on all of them. (Plain code, for older processors, has no fused
// multiply-add and differs.)
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_SIMD_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_SIMD_H_
#undef MIXTRAL_CPU_SIMD_H_
#else
#define MIXTRAL_CPU_SIMD_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kLanes = 16;
using FloatTag = hn::CappedTag<float, kLanes>;
using WordTag = hn::RebindToUnsigned<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;
inline constexpr int kPartLanes = static_cast<int>(hn::MaxLanes(FloatTag()));
inline constexpr int kParts = kLanes / kPartLanes;

// Vectors may only be made by functions that are compiled for their instruction set, which implicit
// constructors are not: hence the empty ones.

/// Sixteen floats.
struct Floats {
  HWY_INLINE Floats() {}
  hn::Vec<FloatTag> part[kParts];
};
/// Sixteen 32-bit words.
struct Words {
  HWY_INLINE Words() {}
  hn::Vec<WordTag> part[kParts];
};
/// Sixteen truth values.
struct Mask {
  HWY_INLINE Mask() {}
  hn::Mask<FloatTag> part[kParts];
};

HWY_INLINE Floats broadcast(float value) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Set(FloatTag(), value);
  return r;
}
HWY_INLINE Words broadcast_word(uint32_t value) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Set(WordTag(), value);
  return r;
}
/// first, first + 1, .. first + 15
HWY_INLINE Words count_up(uint32_t first) {
  Words r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::Add(hn::Set(WordTag(), first + static_cast<uint32_t>(i * kPartLanes)),
                        hn::Iota(WordTag(), 0));
  return r;
}

HWY_INLINE Floats operator+(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Add(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Floats operator-(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Sub(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Floats operator*(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Mul(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Floats operator/(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Div(a.part[i], b.part[i]);
  return r;
}
/// a · b + c, rounded once
HWY_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::MulAdd(a.part[i], b.part[i], c.part[i]);
  return r;
}
/// c − a · b, rounded once
HWY_INLINE Floats subtract_product(const Floats& c, const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::NegMulAdd(a.part[i], b.part[i], c.part[i]);
  return r;
}
HWY_INLINE Floats square_root(const Floats& a) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Sqrt(a.part[i]);
  return r;
}
HWY_INLINE Mask less(const Floats& a, const Floats& b) {
  Mask r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Lt(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Floats select(const Mask& mask, const Floats& yes, const Floats& no) {
  Floats r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::IfThenElse(mask.part[i], yes.part[i], no.part[i]);
  return r;
}
/// The larger of two numbers; which it is when one is NaN depends on the instruction set.
HWY_INLINE Floats maximum(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Max(a.part[i], b.part[i]);
  return r;
}

HWY_INLINE Words operator+(const Words& a, const Words& b) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Add(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Words operator-(const Words& a, const Words& b) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Sub(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Words operator&(const Words& a, const Words& b) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::And(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Words operator|(const Words& a, const Words& b) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Or(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE Words operator^(const Words& a, const Words& b) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Xor(a.part[i], b.part[i]);
  return r;
}
template <int bits>
HWY_INLINE Words shift_left(const Words& a) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::ShiftLeft<bits>(a.part[i]);
  return r;
}
template <int bits>
HWY_INLINE Words shift_right(const Words& a) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::ShiftRight<bits>(a.part[i]);
  return r;
}
/// As above, the sign bit shifted in.
template <int bits>
HWY_INLINE Words shift_right_signed(const Words& a) {
  const hn::RebindToSigned<FloatTag> tag;
  Words r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::BitCast(WordTag(), hn::ShiftRight<bits>(hn::BitCast(tag, a.part[i])));
  return r;
}
/// a < b, both as signed integers
HWY_INLINE Mask less_signed(const Words& a, const Words& b) {
  const hn::RebindToSigned<FloatTag> tag;
  Mask r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::RebindMask(FloatTag(),
                               hn::Lt(hn::BitCast(tag, a.part[i]), hn::BitCast(tag, b.part[i])));
  return r;
}
HWY_INLINE Words as_words(const Floats& a) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::BitCast(WordTag(), a.part[i]);
  return r;
}
HWY_INLINE Floats as_floats(const Words& a) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::BitCast(FloatTag(), a.part[i]);
  return r;
}
HWY_INLINE Words select(const Mask& mask, const Words& yes, const Words& no) {
  return as_words(select(mask, as_floats(yes), as_floats(no)));
}
/// The values of words below 2^31.
HWY_INLINE Floats to_floats(const Words& a) {
  Floats r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::ConvertTo(FloatTag(), hn::BitCast(hn::RebindToSigned<FloatTag>(), a.part[i]));
  return r;
}

/// bf16 in the low halves of words, rounded to nearest even; a NaN stays a NaN.
HWY_INLINE Words to_bf16(const Floats& a) {
  const Words bits = as_words(a);
  const Words odd = shift_right<16>(bits) & broadcast_word(1);
  const Words rounded = shift_right<16>(bits + odd + broadcast_word(0x7fff));
  const Words magnitude = bits & broadcast_word(0x7fffffff);
  return select(less_signed(broadcast_word(0x7f800000), magnitude),
                shift_right<16>(bits) | broadcast_word(0x40), rounded);
}
/// f16 in the low halves of words, rounded to nearest even; too large a value becomes infinite.
HWY_INLINE Words to_f16(const Floats& a) {
  const Words bits = as_words(a);
  const Words sign = shift_right<16>(bits) & broadcast_word(0x8000);
  const Words magnitude = bits & broadcast_word(0x7fffffff);
  const Words rebased = magnitude - broadcast_word(0x38000000);
  const Words odd = shift_right<13>(rebased) & broadcast_word(1);
  const Words normal = shift_right<13>(rebased + odd + broadcast_word(0xfff));
  // A subnormal is rounded by an addition whose last place is its own.
  const Words small = as_words(as_floats(magnitude) + broadcast(0.5f)) - broadcast_word(0x3f000000);
  Words r = select(less_signed(magnitude, broadcast_word(0x38800000)), small, normal);
  r = select(less_signed(magnitude, broadcast_word(0x477ff000)), r, broadcast_word(0x7c00));
  r = select(less_signed(broadcast_word(0x7f800000), magnitude), broadcast_word(0x7e00), r);
  return r | sign;
}
HWY_INLINE Floats from_f16(const Words& a) {
  const Words sign = shift_left<16>(a & broadcast_word(0x8000));
  const Words magnitude = a & broadcast_word(0x7fff);
  const Floats scaled = as_floats(shift_left<13>(magnitude)) * broadcast(0x1p112f);
  const Words infinite = shift_left<13>(magnitude) | broadcast_word(0x7f800000);
  return as_floats(
      select(less_signed(magnitude, broadcast_word(0x7c00)), as_words(scaled), infinite) | sign);
}

/// Sixteen elements of a floating-point type, as floats.
HWY_INLINE Floats load(const float* p) {
  Floats r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::LoadU(FloatTag(), p + i * kPartLanes);
  return r;
}
HWY_INLINE Words load_halves(const uint16_t* p) {
  Words r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::PromoteTo(WordTag(), hn::LoadU(HalfTag(), p + i * kPartLanes));
  return r;
}
HWY_INLINE Floats load(const int8_t* p) {
  Floats r;
  const hn::RebindToSigned<FloatTag> words;
  const hn::Rebind<int8_t, FloatTag> bytes;
  for (int i = 0; i < kParts; ++i)
    r.part[i] =
        hn::ConvertTo(FloatTag(), hn::PromoteTo(words, hn::LoadU(bytes, p + i * kPartLanes)));
  return r;
}
/// The e4m3 in the low eight bits of words, as ops::from_e4m3: its exponent and fraction, moved to
/// those of a float, are 2^-120 of the number, also where it is subnormal.
HWY_INLINE Floats from_e4m3(const Words& a) {
  const Words magnitude = shift_left<20>(a & broadcast_word(0x7f));
  const Words sign = shift_left<24>(a & broadcast_word(0x80));
  return as_floats(as_words(as_floats(magnitude) * broadcast(0x1p120f)) | sign);
}
struct E4m3 {
  uint8_t bits;
};
HWY_INLINE Floats load(const E4m3* p) {
  Words r;
  const hn::Rebind<uint8_t, FloatTag> bytes;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::PromoteTo(WordTag(), hn::LoadU(bytes, &p->bits + i * kPartLanes));
  return from_e4m3(r);
}
HWY_INLINE Floats load(const bf16* p) { return as_floats(shift_left<16>(load_halves(&p->bits))); }
HWY_INLINE Floats load(const f16* p) { return from_f16(load_halves(&p->bits)); }

HWY_INLINE void store(const Floats& a, float* p) {
  for (int i = 0; i < kParts; ++i) hn::StoreU(a.part[i], FloatTag(), p + i * kPartLanes);
}
HWY_INLINE void store_halves(const Words& a, uint16_t* p) {
  for (int i = 0; i < kParts; ++i)
    hn::StoreU(hn::TruncateTo(HalfTag(), a.part[i]), HalfTag(), p + i * kPartLanes);
}
HWY_INLINE void store(const Floats& a, bf16* p) { store_halves(to_bf16(a), &p->bits); }
HWY_INLINE void store(const Floats& a, f16* p) { store_halves(to_f16(a), &p->bits); }

/// The first `count` lanes; the others are 0 when read and left alone when written.
template <class T>
HWY_INLINE Floats load_n(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}
template <class T>
HWY_INLINE void store_n(const Floats& a, T* p, int64_t count) {
  if (count >= kLanes) return store(a, p);
  T lanes[kLanes];
  store(a, lanes);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}
/// Lanes from `count` on become `value`.
HWY_INLINE Floats fill_after(const Floats& a, int64_t count, float value) {
  if (count >= kLanes) return a;
  return select(less_signed(count_up(0), broadcast_word(static_cast<uint32_t>(count))), a,
                broadcast(value));
}

#if HWY_TARGET == HWY_SCALAR

/// The sum of the lanes as a tree: lanes 8 apart first, then 4, 2, 1.
HWY_INLINE float lane_sum(const Floats& a) {
  float lanes[kLanes];
  store(a, lanes);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}
/// The largest lane (of lanes that are numbers).
HWY_INLINE float lane_max(const Floats& a) {
  auto v = a.part[0];
  for (int i = 1; i < kParts; ++i) v = hn::Max(v, a.part[i]);
  return hn::GetLane(v);
}

#else

template <class D>
HWY_INLINE float fold_sum(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    return fold_sum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    const auto pairs = hn::Add(v, hn::Shuffle1032(v));
    return hn::GetLane(hn::Add(pairs, hn::Shuffle2301(pairs)));
  }
}
template <class D>
HWY_INLINE float fold_max(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    return fold_max(half, hn::Max(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    const auto pairs = hn::Max(v, hn::Shuffle1032(v));
    return hn::GetLane(hn::Max(pairs, hn::Shuffle2301(pairs)));
  }
}

/// The sum of the lanes as a tree: lanes 8 apart first, then 4, 2, 1.
HWY_INLINE float lane_sum(const Floats& a) {
  if constexpr (kParts == 4)
    return fold_sum(FloatTag(), hn::Add(hn::Add(a.part[0], a.part[2 % kParts]),
                                        hn::Add(a.part[1 % kParts], a.part[3 % kParts])));
  else if constexpr (kParts == 2)
    return fold_sum(FloatTag(), hn::Add(a.part[0], a.part[1 % kParts]));
  else
    return fold_sum(FloatTag(), a.part[0]);
}
/// The largest lane (of lanes that are numbers).
HWY_INLINE float lane_max(const Floats& a) {
  auto v = a.part[0];
  for (int i = 1; i < kParts; ++i) v = hn::Max(v, a.part[i]);
  return fold_max(FloatTag(), v);
}

#endif

/// body(i, count) for i = 0, 16, 32, .. below n, with count = min(16, n − i).
template <class Body>
HWY_INLINE void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, int64_t{kLanes});
  if (i < n) body(i, n - i);
}

/// Σ term(i, count) over the same groups: group j goes to the lanes of sum j mod 4; the four are
/// added as (0 + 1) + (2 + 3), then the lanes as a tree. Lanes past `count` must be 0.
template <class Term>
HWY_INLINE float sum_lanes(int64_t n, const Term& term) {
  Floats s0 = broadcast(0), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 = s0 + term(i, int64_t{kLanes});
    s1 = s1 + term(i + kLanes, int64_t{kLanes});
    s2 = s2 + term(i + 2 * kLanes, int64_t{kLanes});
    s3 = s3 + term(i + 3 * kLanes, int64_t{kLanes});
  }
  const auto width = [](int64_t rest) { return rest < kLanes ? rest : int64_t{kLanes}; };
  if (i < n) s0 = s0 + term(i, width(n - i));
  if (i + kLanes < n) s1 = s1 + term(i + kLanes, width(n - i - kLanes));
  if (i + 2 * kLanes < n) s2 = s2 + term(i + 2 * kLanes, width(n - i - 2 * kLanes));
  if (i + 3 * kLanes < n) s3 = s3 + term(i + 3 * kLanes, width(n - i - 3 * kLanes));
  return lane_sum((s0 + s1) + (s2 + s3));
}

/// f(T()) with the C++ type of a 16- or 32-bit floating-point tensor.
template <class F>
void with_type(Dtype dtype, const F& f) {
  if (dtype == Dtype::f32)
    f(float());
  else if (dtype == Dtype::bf16)
    f(bf16());
  else
    f(f16());
}

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
