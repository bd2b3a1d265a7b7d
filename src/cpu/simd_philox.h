// Philox4x32-10 (base/random.h) for sixteen counters at a time.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_SIMD_PHILOX_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_SIMD_PHILOX_H_
#undef MIXTRAL_CPU_SIMD_PHILOX_H_
#else
#define MIXTRAL_CPU_SIMD_PHILOX_H_
#endif

#include "base/random.h"
#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {

/// Words 0 .. 3 of sixteen counters.
struct RandomWords {
  HWY_INLINE RandomWords() {}
  Words word[4];
};

/// A key, and what its two words become from round to round.
struct PhiloxKey {
  explicit PhiloxKey(uint64_t key) : value(key) {
    auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      low[round] = k0;
      high[round] = k1;
    }
  }

  uint64_t value;
  uint64_t low[10], high[10];
};

#if HWY_TARGET == HWY_SCALAR

/// philox(key, high, low + i) for i = 0 .. 15, where low is a multiple of 16.
HWY_INLINE RandomWords philox16(const PhiloxKey& key, uint64_t high, uint64_t low) {
  RandomWords result;
  for (int i = 0; i < kParts; ++i) {
    const auto words = philox(key.value, high, low + static_cast<uint64_t>(i));
    for (int j = 0; j < 4; ++j)
      result.word[j].part[i] = hn::Set(WordTag(), words[static_cast<size_t>(j)]);
  }
  return result;
}

#else

using WideTag = hn::Repartition<uint64_t, FloatTag>;

/// The four words of some counters, in the low halves of 64-bit lanes: a product's low word is then
/// in place (the multiplication ignores what is above it) and its high word one shift away.
struct PhiloxState {
  hn::Vec<WideTag> c0, c1, c2, c3;
};

HWY_INLINE PhiloxState philox_round(const PhiloxState& c, uint64_t k0, uint64_t k1) {
  const WideTag tag;
  const auto p0 = hn::MulEven(hn::BitCast(WordTag(), c.c0), hn::Set(WordTag(), 0xD2511F53u));
  const auto p1 = hn::MulEven(hn::BitCast(WordTag(), c.c2), hn::Set(WordTag(), 0xCD9E8D57u));
  return {hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c.c1), hn::Set(tag, k0)), p1,
          hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c.c3), hn::Set(tag, k1)), p0};
}

/// Words of even and of odd counters, side by side.
HWY_INLINE hn::Vec<WordTag> interleave(hn::Vec<WideTag> even, hn::Vec<WideTag> odd) {
  return hn::OddEven(hn::BitCast(WordTag(), hn::ShiftLeft<32>(odd)), hn::BitCast(WordTag(), even));
}

/// philox(key, high, low + i) for i = 0 .. 15, where low is a multiple of 16.
HWY_INLINE RandomWords philox16(const PhiloxKey& key, uint64_t high, uint64_t low) {
  const WideTag tag;
  RandomWords result;
  for (int i = 0; i < kParts; ++i) {
    const auto first = static_cast<uint32_t>(low) + static_cast<uint32_t>(i * kPartLanes);
    const auto counters =
        hn::BitCast(tag, hn::Add(hn::Set(WordTag(), first), hn::Iota(WordTag(), 0)));
    const auto c1 = hn::Set(tag, low >> 32);
    const auto c2 = hn::Set(tag, high & 0xffffffffu), c3 = hn::Set(tag, high >> 32);
    PhiloxState even{counters, c1, c2, c3}, odd{hn::ShiftRight<32>(counters), c1, c2, c3};
    HWY_UNROLL(10)
    for (int round = 0; round < 10; ++round) {
      even = philox_round(even, key.low[round], key.high[round]);
      odd = philox_round(odd, key.low[round], key.high[round]);
    }
    result.word[0].part[i] = interleave(even.c0, odd.c0);
    result.word[1].part[i] = interleave(even.c1, odd.c1);
    result.word[2].part[i] = interleave(even.c2, odd.c2);
    result.word[3].part[i] = interleave(even.c3, odd.c3);
  }
  return result;
}

#endif

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
