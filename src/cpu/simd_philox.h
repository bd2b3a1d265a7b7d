// Philox4x32-10 (base/random.h) for sixteen counters at a time.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_SIMD_PHILOX_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_SIMD_PHILOX_H_
#undef MIXTRAL_CPU_SIMD_PHILOX_H_
#else
#define MIXTRAL_CPU_SIMD_PHILOX_H_
#endif

#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR
using WideTag = hn::Repartition<uint64_t, FloatTag>;
#endif

/// Words 0 .. 3 of sixteen counters.
struct RandomWords {
  Words word[4];
};

/// low and high halves of the 64-bit products a · factor
HWY_INLINE void multiply_wide(const Words& a, uint32_t factor, Words& low, Words& high) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kParts; ++i) {
    const uint64_t product = uint64_t{hn::GetLane(a.part[i])} * factor;
    low.part[i] = hn::Set(WordTag(), static_cast<uint32_t>(product));
    high.part[i] = hn::Set(WordTag(), static_cast<uint32_t>(product >> 32));
  }
#else
  const auto f = hn::Set(WordTag(), factor);
  for (int i = 0; i < kParts; ++i) {
    const auto even = hn::MulEven(a.part[i], f);
    const auto odd = hn::MulEven(
        hn::BitCast(WordTag(), hn::ShiftRight<32>(hn::BitCast(WideTag(), a.part[i]))), f);
    const auto upper = hn::Set(WideTag(), 0xffffffff00000000u);
    high.part[i] = hn::BitCast(WordTag(), hn::Or(hn::ShiftRight<32>(even), hn::And(odd, upper)));
    low.part[i] = hn::BitCast(WordTag(), hn::Or(hn::AndNot(upper, even), hn::ShiftLeft<32>(odd)));
  }
#endif
}

/// philox(key, high, low + i) for i = 0 .. 15, where low is a multiple of 16.
HWY_INLINE RandomWords philox16(uint64_t key, uint64_t high, uint64_t low) {
  Words c0 = count_up(static_cast<uint32_t>(low));
  Words c1 = broadcast_word(static_cast<uint32_t>(low >> 32));
  Words c2 = broadcast_word(static_cast<uint32_t>(high));
  Words c3 = broadcast_word(static_cast<uint32_t>(high >> 32));
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    Words low0, high0, low1, high1;
    multiply_wide(c0, 0xD2511F53u, low0, high0);
    multiply_wide(c2, 0xCD9E8D57u, low1, high1);
    c0 = high1 ^ c1 ^ broadcast_word(k0);
    c1 = low1;
    c2 = high0 ^ c3 ^ broadcast_word(k1);
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// unit_float and unit_float_open of base/random.h
HWY_INLINE Floats unit_floats(const Words& words) {
  return to_floats(shift_right<8>(words)) * broadcast(0x1p-24f);
}
HWY_INLINE Floats unit_floats_open(const Words& words) {
  return to_floats(shift_right<8>(words) + broadcast_word(1)) * broadcast(0x1p-24f);
}

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
