// The vectors of the integer kernels: eight outputs side by side, or sixteen (two bundles) where a
// vector has 64 bytes. Bytes holds four codes of each output; Ints and Reals one number of each.
// A file that defines MIXTRAL_ONE_BUNDLE gets eight with AVX-512, too.
//
// For files that are compiled for one instruction set; nothing here is shared between them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
// g++ 12 takes the headers' deliberately undefined values for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mixtral::cpu {
namespace {

/// Part of a bundle, and how far the same part of the next bundle lies behind it (where a vector
/// holds two).
struct Place {
  const uint8_t* at;
  int64_t next;
  [[gnu::always_inline]] Place operator+(int64_t bytes) const { return {at + bytes, next}; }
};

[[gnu::always_inline]] inline int32_t load_word(const void* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

/// Returns `sum`, and has it computed at this point. Where products are added by instructions of
/// their own, g++ would move all additions behind the last product, and keep the products of some
/// rows in memory until then.
template <class V>
[[gnu::always_inline]] inline V in_order(V sum) {
#if defined(__AVX512VNNI__)
#elif defined(__AVX512VL__)
  asm("" : "+v"(sum));
#elif defined(__AVX2__)
  asm("" : "+x"(sum));
#endif
  return sum;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    !defined(MIXTRAL_ONE_BUNDLE)

constexpr int kBundles = 2;
using Bytes = __m512i;
using Ints = __m512i;
using Reals = __m512;

[[gnu::always_inline]] inline Ints load_ints(Place p) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.at));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.at + p.next)), 1);
}
/// Eight halves of each bundle.
[[gnu::always_inline]] inline Reals load_halves(Place p) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at + p.next));
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
/// The same of numbers in bf16.
[[gnu::always_inline]] inline Reals load_bf16(Place p) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at + p.next));
  const __m256i both_halves = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(both_halves), 16));
}
[[gnu::always_inline]] inline Reals low_halves(Ints a) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
}
[[gnu::always_inline]] inline Reals high_halves(Ints a) {
  return low_halves(_mm512_srli_epi32(a, 16));
}
[[gnu::always_inline]] inline Ints zero_ints() { return _mm512_setzero_si512(); }
[[gnu::always_inline]] inline Ints broadcast(int32_t a) { return _mm512_set1_epi32(a); }
[[gnu::always_inline]] inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
[[gnu::always_inline]] inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
[[gnu::always_inline]] inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
[[gnu::always_inline]] inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int bits>
[[gnu::always_inline]] inline Ints shift_left(Ints a) {
  return _mm512_slli_epi32(a, bits);
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right(Ints a) {
  return _mm512_srli_epi32(a, bits);
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right_signed(Ints a) {
  return _mm512_srai_epi32(a, bits);
}
[[gnu::always_inline]] inline Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
/// Sums of the products of the two 16-bit halves of each number.
[[gnu::always_inline]] inline Ints multiply_pairs(Ints a, Ints b) {
  return _mm512_madd_epi16(a, b);
}
[[gnu::always_inline]] inline Reals zero_reals() { return _mm512_setzero_ps(); }
[[gnu::always_inline]] inline Reals broadcast(float a) { return _mm512_set1_ps(a); }
[[gnu::always_inline]] inline Reals to_reals(Ints a) { return _mm512_cvtepi32_ps(a); }
[[gnu::always_inline]] inline Reals multiply(Reals a, Reals b) { return _mm512_mul_ps(a, b); }
/// a · b + c and c − a · b, rounded once
[[gnu::always_inline]] inline Reals multiply_add(Reals a, Reals b, Reals c) {
  return _mm512_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline Reals subtract_product(Reals c, Reals a, Reals b) {
  return _mm512_fnmadd_ps(a, b, c);
}
/// The numbers of the first bundle, or of both, to and from memory.
[[gnu::always_inline]] inline Reals load_outputs(const float* from, bool two) {
  return _mm512_maskz_loadu_ps(two ? 0xffff : 0xff, from);
}
[[gnu::always_inline]] inline void store_outputs(Reals a, float* to, bool two) {
  _mm512_mask_storeu_ps(to, two ? 0xffff : 0xff, a);
}

/// a with the bytes' top bits flipped: signed codes plus 128.
[[gnu::always_inline]] inline Bytes flip_signs(Bytes a) {
  return _mm512_xor_si512(a, _mm512_set1_epi8(-128));
}
/// a where the mask's bits are 0, and either of both where they are 1.
[[gnu::always_inline]] inline Ints add_bits(Ints a, Ints b, Ints mask) {
  return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
/// The table's byte for each code, which is below 16.
[[gnu::always_inline]] inline Bytes look_up(const int8_t (&table)[16], Bytes codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), codes);
}

#if defined(__AVX512VNNI__)
/// sums + Σ of four products of codes without a sign and x with one
[[gnu::always_inline]] inline Ints add_dot(Ints sums, Bytes codes, Ints x) {
  return _mm512_dpbusd_epi32(sums, codes, x);
}
#else

/// Products of four codes, each at most `largest`, whose sums fit into 16 bits.
constexpr int kChain(int largest) { return 32767 / (2 * 127 * largest); }
using Sums = Ints;  // of pairs, in 16 bits
[[gnu::always_inline]] inline Sums begin_sums() { return zero_ints(); }
[[gnu::always_inline]] inline Sums add_products(Sums sums, Bytes codes, Ints x) {
  return _mm512_add_epi16(sums, _mm512_maddubs_epi16(codes, x));
}
[[gnu::always_inline]] inline Ints finish(Sums sums) {
  return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
}
using Scales = Ints;  // each twice, in 16 bits
[[gnu::always_inline]] inline Scales make_scales(Ints scales) {
  return either(both(scales, broadcast(0xffff)), shift_left<16>(scales));
}
[[gnu::always_inline]] inline Ints finish(Sums sums, Scales scales) {
  return _mm512_madd_epi16(sums, scales);
}
/// Signed codes of 8 bits. maddubs takes unsigned ones, so the codes' signs are moved to x.
struct SignedBytes {
  Bytes magnitudes;
  __mmask64 negative;
};
[[gnu::always_inline]] inline SignedBytes make_signed(Bytes codes) {
  return {_mm512_abs_epi8(codes), _mm512_movepi8_mask(codes)};
}
[[gnu::always_inline]] inline Ints begin_signed(int32_t) { return zero_ints(); }
[[gnu::always_inline]] inline Ints add_signed(Ints sums, SignedBytes a, Ints x) {
  const Ints with_signs = _mm512_mask_sub_epi8(x, a.negative, zero_ints(), x);
  return add(sums, finish(_mm512_maddubs_epi16(a.magnitudes, with_signs)));
}

#endif

#elif defined(__AVX2__)

constexpr int kBundles = 1;
using Bytes = __m256i;
using Ints = __m256i;
using Reals = __m256;

[[gnu::always_inline]] inline Ints load_ints(Place p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.at));
}
[[gnu::always_inline]] inline Reals load_halves(Place p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at)));
}
[[gnu::always_inline]] inline Reals load_bf16(Place p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
[[gnu::always_inline]] inline Reals low_halves(Ints a) {
#if defined(__AVX512VL__)
  return _mm256_cvtph_ps(_mm256_cvtepi32_epi16(a));
#else
  const __m256i low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
#endif
}
[[gnu::always_inline]] inline Reals high_halves(Ints a) {
  return low_halves(_mm256_srli_epi32(a, 16));
}
[[gnu::always_inline]] inline Ints zero_ints() { return _mm256_setzero_si256(); }
[[gnu::always_inline]] inline Ints broadcast(int32_t a) { return _mm256_set1_epi32(a); }
[[gnu::always_inline]] inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
[[gnu::always_inline]] inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
[[gnu::always_inline]] inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
[[gnu::always_inline]] inline Ints either(Ints a, Ints b) { return _mm256_or_si256(a, b); }
template <int bits>
[[gnu::always_inline]] inline Ints shift_left(Ints a) {
  return _mm256_slli_epi32(a, bits);
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right(Ints a) {
  return _mm256_srli_epi32(a, bits);
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right_signed(Ints a) {
  return _mm256_srai_epi32(a, bits);
}
[[gnu::always_inline]] inline Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
/// Sums of the products of the two 16-bit halves of each number.
[[gnu::always_inline]] inline Ints multiply_pairs(Ints a, Ints b) {
  return _mm256_madd_epi16(a, b);
}
[[gnu::always_inline]] inline Reals zero_reals() { return _mm256_setzero_ps(); }
[[gnu::always_inline]] inline Reals broadcast(float a) { return _mm256_set1_ps(a); }
[[gnu::always_inline]] inline Reals to_reals(Ints a) { return _mm256_cvtepi32_ps(a); }
[[gnu::always_inline]] inline Reals multiply(Reals a, Reals b) { return _mm256_mul_ps(a, b); }
/// a · b + c and c − a · b, rounded once
[[gnu::always_inline]] inline Reals multiply_add(Reals a, Reals b, Reals c) {
  return _mm256_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline Reals subtract_product(Reals c, Reals a, Reals b) {
  return _mm256_fnmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline Reals load_outputs(const float* from, bool) {
  return _mm256_loadu_ps(from);
}
[[gnu::always_inline]] inline void store_outputs(Reals a, float* to, bool) {
  _mm256_storeu_ps(to, a);
}

[[gnu::always_inline]] inline Bytes flip_signs(Bytes a) {
  return _mm256_xor_si256(a, _mm256_set1_epi8(-128));
}
[[gnu::always_inline]] inline Ints add_bits(Ints a, Ints b, Ints mask) {
#if defined(__AVX512VL__)
  return _mm256_ternarylogic_epi32(a, b, mask, 0xf8);
#else
  return either(a, both(b, mask));
#endif
}
[[gnu::always_inline]] inline Bytes look_up(const int8_t (&table)[16], Bytes codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), codes);
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
[[gnu::always_inline]] inline Ints add_dot(Ints sums, Bytes codes, Ints x) {
  return _mm256_dpbusd_epi32(sums, codes, x);
}
#else

/// Products of four codes, each at most `largest`, whose sums fit into 16 bits.
constexpr int kChain(int largest) { return 32767 / (2 * 127 * largest); }
using Sums = Ints;  // of pairs, in 16 bits
[[gnu::always_inline]] inline Sums begin_sums() { return zero_ints(); }
[[gnu::always_inline]] inline Sums add_products(Sums sums, Bytes codes, Ints x) {
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x));
}
[[gnu::always_inline]] inline Ints finish(Sums sums) {
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}
using Scales = Ints;  // each twice, in 16 bits
[[gnu::always_inline]] inline Scales make_scales(Ints scales) {
  return either(both(scales, broadcast(0xffff)), shift_left<16>(scales));
}
[[gnu::always_inline]] inline Ints finish(Sums sums, Scales scales) {
  return _mm256_madd_epi16(sums, scales);
}
/// Codes of 8 bits with a sign: their magnitudes are multiplied by x with their signs.
struct SignedBytes {
  Bytes magnitudes, codes;
};
[[gnu::always_inline]] inline SignedBytes make_signed(Bytes codes) {
  return {_mm256_abs_epi8(codes), codes};
}
[[gnu::always_inline]] inline Ints begin_signed(int32_t) { return zero_ints(); }
[[gnu::always_inline]] inline Ints add_signed(Ints sums, SignedBytes a, Ints x) {
  return add(sums, finish(_mm256_maddubs_epi16(a.magnitudes, _mm256_sign_epi8(x, a.codes))));
}

#endif

#elif defined(__aarch64__)

constexpr int kBundles = 1;
struct Ints {
  int32x4_t low, high;
};
using Bytes = Ints;
struct Reals {
  float32x4_t low, high;
};

[[gnu::always_inline]] inline Ints load_ints(Place p) {
  return {vreinterpretq_s32_u8(vld1q_u8(p.at)), vreinterpretq_s32_u8(vld1q_u8(p.at + 16))};
}
[[gnu::always_inline]] inline float16x8_t as_halves(uint16x8_t a) {
  return vreinterpretq_f16_u16(a);
}
[[gnu::always_inline]] inline Reals from_halves(uint16x8_t a) {
  return {vcvt_f32_f16(vget_low_f16(as_halves(a))), vcvt_high_f32_f16(as_halves(a))};
}
[[gnu::always_inline]] inline Reals load_halves(Place p) {
  return from_halves(vreinterpretq_u16_u8(vld1q_u8(p.at)));
}
[[gnu::always_inline]] inline Reals load_bf16(Place p) {
  const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(p.at));
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
}
[[gnu::always_inline]] inline Reals low_halves(Ints a) {
  return from_halves(vuzp1q_u16(vreinterpretq_u16_s32(a.low), vreinterpretq_u16_s32(a.high)));
}
[[gnu::always_inline]] inline Reals high_halves(Ints a) {
  return from_halves(vuzp2q_u16(vreinterpretq_u16_s32(a.low), vreinterpretq_u16_s32(a.high)));
}
[[gnu::always_inline]] inline Ints broadcast(int32_t a) { return {vdupq_n_s32(a), vdupq_n_s32(a)}; }
[[gnu::always_inline]] inline Ints zero_ints() { return broadcast(0); }
[[gnu::always_inline]] inline Ints add(Ints a, Ints b) {
  return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)};
}
[[gnu::always_inline]] inline Ints subtract(Ints a, Ints b) {
  return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)};
}
[[gnu::always_inline]] inline Ints both(Ints a, Ints b) {
  return {vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)};
}
[[gnu::always_inline]] inline Ints either(Ints a, Ints b) {
  return {vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)};
}
[[gnu::always_inline]] inline Ints add_bits(Ints a, Ints b, Ints mask) {
  return either(a, both(b, mask));
}
[[gnu::always_inline]] inline Bytes flip_signs(Bytes a) {
  const int32x4_t top = vreinterpretq_s32_s8(vdupq_n_s8(-128));
  return {veorq_s32(a.low, top), veorq_s32(a.high, top)};
}
[[gnu::always_inline]] inline Bytes look_up(const int8_t (&table)[16], Bytes codes) {
  const int8x16_t bytes = vld1q_s8(table);
  const auto half = [&](int32x4_t a) {
    return vreinterpretq_s32_s8(vqtbl1q_s8(bytes, vreinterpretq_u8_s32(a)));
  };
  return {half(codes.low), half(codes.high)};
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_left(Ints a) {
  return {vshlq_n_s32(a.low, bits), vshlq_n_s32(a.high, bits)};
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right(Ints a) {
  const auto shift = [](int32x4_t v) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-bits)));
  };
  return {shift(a.low), shift(a.high)};
}
template <int bits>
[[gnu::always_inline]] inline Ints shift_right_signed(Ints a) {
  return {vshlq_s32(a.low, vdupq_n_s32(-bits)), vshlq_s32(a.high, vdupq_n_s32(-bits))};
}
[[gnu::always_inline]] inline Ints multiply(Ints a, Ints b) {
  return {vmulq_s32(a.low, b.low), vmulq_s32(a.high, b.high)};
}
/// Sums of the products of the two 16-bit halves of each number.
[[gnu::always_inline]] inline Ints multiply_pairs(Ints a, Ints b) {
  const auto pairs = [](int32x4_t u, int32x4_t v) {
    const int16x8_t x = vreinterpretq_s16_s32(u), y = vreinterpretq_s16_s32(v);
    return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
  };
  return {pairs(a.low, b.low), pairs(a.high, b.high)};
}
[[gnu::always_inline]] inline Reals broadcast(float a) { return {vdupq_n_f32(a), vdupq_n_f32(a)}; }
[[gnu::always_inline]] inline Reals zero_reals() { return broadcast(0.0f); }
[[gnu::always_inline]] inline Reals to_reals(Ints a) {
  return {vcvtq_f32_s32(a.low), vcvtq_f32_s32(a.high)};
}
[[gnu::always_inline]] inline Reals multiply(Reals a, Reals b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
/// a · b + c and c − a · b, rounded once
[[gnu::always_inline]] inline Reals multiply_add(Reals a, Reals b, Reals c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
[[gnu::always_inline]] inline Reals subtract_product(Reals c, Reals a, Reals b) {
  return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
[[gnu::always_inline]] inline Reals load_outputs(const float* from, bool) {
  return {vld1q_f32(from), vld1q_f32(from + 4)};
}
[[gnu::always_inline]] inline void store_outputs(Reals a, float* to, bool) {
  vst1q_f32(to, a.low);
  vst1q_f32(to + 4, a.high);
}

constexpr int kChain(int) { return 64; }  // products of four codes whose sums fit
using Sums = Ints;
[[gnu::always_inline]] inline Sums begin_sums() { return zero_ints(); }
[[gnu::always_inline]] inline Sums add_products(Sums sums, Bytes codes, Ints x) {
  const auto dot = [](int32x4_t sum, int32x4_t a, int32x4_t b) {
    const int8x16_t u = vreinterpretq_s8_s32(a), v = vreinterpretq_s8_s32(b);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, u, v);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(u), vget_low_s8(v)), high = vmull_high_s8(u, v);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  };
  return {dot(sums.low, codes.low, x.low), dot(sums.high, codes.high, x.high)};
}
[[gnu::always_inline]] inline Ints finish(Sums sums) { return sums; }
using Scales = Ints;
[[gnu::always_inline]] inline Scales make_scales(Ints scales) { return scales; }
[[gnu::always_inline]] inline Ints finish(Sums sums, Scales scales) {
  return multiply(sums, scales);
}
struct SignedBytes {
  Bytes codes;
};
[[gnu::always_inline]] inline SignedBytes make_signed(Bytes codes) { return {codes}; }
[[gnu::always_inline]] inline Ints begin_signed(int32_t) { return zero_ints(); }
[[gnu::always_inline]] inline Ints add_signed(Ints sums, SignedBytes a, Ints x) {
  return add_products(sums, a.codes, x);
}

#endif

#if defined(__AVX512VNNI__)

constexpr int kChain(int) { return 64; }  // products of four codes whose sums fit
using Sums = Ints;                        // of products, before they are finished
[[gnu::always_inline]] inline Sums begin_sums() { return zero_ints(); }
[[gnu::always_inline]] inline Sums add_products(Sums sums, Bytes codes, Ints x) {
  return add_dot(sums, codes, x);
}
[[gnu::always_inline]] inline Ints finish(Sums sums) { return sums; }
using Scales = Ints;
[[gnu::always_inline]] inline Scales make_scales(Ints scales) { return scales; }
[[gnu::always_inline]] inline Ints finish(Sums sums, Scales scales) {
  return multiply(sums, scales);
}
/// Signed codes of 8 bits. vpdpbusd takes unsigned ones, so 128 is added to each code, and 128
/// times the sum of x is subtracted from the product.
struct SignedBytes {
  Bytes codes;
};
[[gnu::always_inline]] inline SignedBytes make_signed(Bytes codes) { return {flip_signs(codes)}; }
[[gnu::always_inline]] inline Ints begin_signed(int32_t sum_of_x) {
  return broadcast(-128 * sum_of_x);
}
[[gnu::always_inline]] inline Ints add_signed(Ints sums, SignedBytes a, Ints x) {
  return add_dot(sums, a.codes, x);
}

#endif

}  // namespace
}  // namespace mixtral::cpu
