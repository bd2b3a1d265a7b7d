// What the products of floats have in common: vectors, the shape of a tile, reading of elements.
//
// A tile is 14 × 2 vectors where there are 32 wide registers (28 sums, 2 columns of B, rows of A
// broadcast from memory), 6 × 2 where there are 16, 12 × 2 on NEON. AVX2 (with FMA), AVX-512 and
// NEON: chains of multiply-adds give the same bits on all of them.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_MATMUL_FLOAT_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_MATMUL_FLOAT_H_
#undef MIXTRAL_CPU_MATMUL_FLOAT_H_
#else
#define MIXTRAL_CPU_MATMUL_FLOAT_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "cpu/matmul_kernels.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::ScalableTag<float>;
using U = hn::RebindToUnsigned<F>;
using W = hn::Repartition<uint64_t, F>;
using V = hn::Vec<F>;

constexpr int kLanes = HWY_MAX_BYTES / 4;
constexpr int kColumns = 2 * kLanes;
#if HWY_TARGET == HWY_NEON
constexpr int kRows = 12;
#elif HWY_MAX_BYTES == 64
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif
constexpr int kBlocks = kLanes / 4;  // of 128 bits in a vector
constexpr int64_t kPanelUnits = panel_units(kColumns);
constexpr int64_t kRowTileUnits = row_tile_units(kRows);
constexpr int64_t kPrefetchRows = 6;
constexpr int64_t kPrefetchUnits = 8;
constexpr int64_t kMaxAhead = 512 << 10;  // bytes
constexpr int kStreamRows = kRows > 8 ? 8 : 4;

/// Rounds floats to bf16, to nearest even; a NaN stays one.
HWY_INLINE V round_bf16(V v) {
  const U u;
  const auto bits = hn::BitCast(u, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(u, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(u, 0x400000u));
  const auto result = hn::IfThenElse(hn::RebindMask(u, hn::IsNaN(v)), quiet, rounded);
  return hn::BitCast(F(), hn::And(result, hn::Set(u, 0xffff0000u)));
}

/// The halves in the high 16 bits of each lane as floats, subnormals and infinities included.
HWY_INLINE V from_half(hn::Vec<U> bits) {
  const F f;
  const U u;
  const auto shifted = hn::ShiftRight<3>(hn::BitCast(hn::RebindToSigned<F>(), bits));
  const auto rebased = hn::And(hn::BitCast(u, shifted), hn::Set(u, 0x8fffe000u));
  const V scaled = hn::Mul(hn::BitCast(f, rebased), hn::Set(f, 0x1p112f));
  const auto special = hn::Ge(hn::Abs(scaled), hn::Set(f, 65536.0f));
  return hn::IfThenElse(special, hn::Or(scaled, hn::BitCast(f, hn::Set(u, 0x7f800000u))), scaled);
}

/// Two neighbours in k from lanes of 16-bit pairs.
template <Element kElement>
HWY_INLINE void split_pair(hn::Vec<U> pairs, V& even, V& odd) {
  const U u;
  if constexpr (kElement == Element::bf16) {
    even = hn::BitCast(F(), hn::ShiftLeft<16>(pairs));
    odd = hn::BitCast(F(), hn::And(pairs, hn::Set(u, 0xffff0000u)));
  } else {
    even = from_half(hn::ShiftLeft<16>(pairs));
    odd = from_half(pairs);
  }
}

constexpr int64_t bytes_of(Element element) { return element == Element::f32 ? 4 : 2; }

/// 16-byte steps of a line that are transposed at once: a cache line's worth where a vector has 16
/// lines, because lines a power of two apart would push one another out of the cache before their
/// next step. Many rows of sums leave registers for less.
constexpr int steps_for(int rows) { return kLanes < 16 ? 1 : rows <= 4 ? 4 : 2; }
constexpr int kSteps = steps_for(0);
constexpr int kChunk = 16 * kSteps;  // bytes

#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
/// v[n] = 128-bit block n of the cache lines at base, base + step, base + 2 · step, base + 3 ·
/// step.
HWY_INLINE void transpose_blocks(const uint8_t* base, int64_t step, V& v0, V& v1, V& v2, V& v3) {
  const auto load = [&](int64_t i) {
    return hn::LoadU(F(), reinterpret_cast<const float*>(base + i * step)).raw;
  };
  const auto a = load(0), b = load(1), c = load(2), d = load(3);
  const auto ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
  const auto cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  v0 = V{_mm512_shuffle_f32x4(ab_low, cd_low, 0x88)};
  v1 = V{_mm512_shuffle_f32x4(ab_low, cd_low, 0xdd)};
  v2 = V{_mm512_shuffle_f32x4(ab_high, cd_high, 0x88)};
  v3 = V{_mm512_shuffle_f32x4(ab_high, cd_high, 0xdd)};
}
constexpr bool kTransposesBlocks = true;
#else
HWY_INLINE void transpose_blocks(const uint8_t*, int64_t, V&, V&, V&, V&) {}
constexpr bool kTransposesBlocks = false;
#endif

/// Reads kN · 16 bytes from each of kLanes lines (line l at base + l · stride bytes) and transposes
/// them as 32-bit words: out[w] holds word w of every line. Each vector first gathers one 128-bit
/// block from each of kBlocks lines, so that 4 × 4 transposes within blocks suffice. Where there
/// are fewer lines, 4 · `blocks`, the first ones stand for the others, too.
template <int kN>
HWY_INLINE void transpose(const uint8_t* base, int64_t stride, V* out, int blocks = kBlocks) {
  const F f;
  const W w;
  const auto lane = hn::Iota(f, 0.0f);
  V v[kN][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j, base += stride) {
    if constexpr (kTransposesBlocks && kN == 4) {
      transpose_blocks(base, 4 * stride, v[0][j], v[1][j], v[2][j], v[3][j]);
      continue;
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      const uint8_t* const line = base + (b < blocks ? 4 * b : 0) * stride;
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        const V block = hn::LoadDup128(f, reinterpret_cast<const float*>(line + 16 * n));
        v[n][j] = b == 0 ? block
                         : hn::IfThenElse(hn::Ge(lane, hn::Set(f, static_cast<float>(4 * b))),
                                          block, v[n][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < kN; ++n) {
    const auto low01 = hn::BitCast(w, hn::InterleaveLower(f, v[n][0], v[n][1]));
    const auto low23 = hn::BitCast(w, hn::InterleaveLower(f, v[n][2], v[n][3]));
    const auto high01 = hn::BitCast(w, hn::InterleaveUpper(f, v[n][0], v[n][1]));
    const auto high23 = hn::BitCast(w, hn::InterleaveUpper(f, v[n][2], v[n][3]));
    out[4 * n] = hn::BitCast(f, hn::InterleaveLower(w, low01, low23));
    out[4 * n + 1] = hn::BitCast(f, hn::InterleaveUpper(w, low01, low23));
    out[4 * n + 2] = hn::BitCast(f, hn::InterleaveLower(w, high01, high23));
    out[4 * n + 3] = hn::BitCast(f, hn::InterleaveUpper(w, high01, high23));
  }
}

/// The elements of k in the words that `transpose` gave, as vectors kStride floats apart.
template <Element kElement, bool kRound, int kWords, int kStride>
HWY_INLINE void store_words(const V* words, float* to) {
  const F f;
#pragma GCC unroll 16
  for (int i = 0; i < kWords; ++i) {
    if constexpr (kElement == Element::f32) {
      hn::Store(kRound ? round_bf16(words[i]) : words[i], f, to + i * kStride);
    } else {
      V even, odd;
      split_pair<kElement>(hn::BitCast(U(), words[i]), even, odd);
      hn::Store(kRound ? round_bf16(even) : even, f, to + 2 * i * kStride);
      hn::Store(kRound ? round_bf16(odd) : odd, f, to + (2 * i + 1) * kStride);
    }
  }
}

/// Word `word` of line `line` of an interleaved operand with `per_word` elements in a word; the
/// same word of the next lines follows.
HWY_INLINE const float* interleaved_word(const Operand& operand, int64_t line, int64_t word,
                                         int64_t per_word) {
  const int64_t words = operand.stride / per_word;
  return static_cast<const float*>(operand.data) +
         (line / kInterleavedLines * words + word) * kInterleavedLines + line % kInterleavedLines;
}

/// Copies the last `bytes` < kBytes bytes of `lines` lines to a zero-padded block of kLanes lines
/// kBytes apart, for `transpose`.
template <int kBytes>
void copy_tail(const uint8_t* base, int64_t stride, int64_t lines, int64_t bytes, uint8_t* tail) {
  std::memset(tail, 0, kLanes * kBytes);
  for (int64_t l = 0; l < HWY_MIN(lines, int64_t{kLanes}); ++l)
    std::memcpy(tail + l * kBytes, base + l * stride, static_cast<size_t>(bytes));
}

/// c[0 .. columns) = scale · sum (+ c). `sum` has a whole number of vectors.
HWY_INLINE void finish_row(const float* sum, float* c, int64_t columns, float scale,
                           bool accumulate) {
  const F f;
  const V s = hn::Set(f, scale);
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const V v = hn::LoadU(f, sum + j);
    hn::StoreU(accumulate ? hn::MulAdd(v, s, hn::LoadU(f, c + j)) : hn::Mul(v, s), f, c + j);
  }
  if (j < columns) {
    float tail[kLanes] = {};
    const auto bytes = static_cast<size_t>(columns - j) * 4;
    if (accumulate) std::memcpy(tail, c + j, bytes);
    const V v = hn::LoadU(f, sum + j);
    hn::StoreU(accumulate ? hn::MulAdd(v, s, hn::LoadU(f, tail)) : hn::Mul(v, s), f, tail);
    std::memcpy(c + j, tail, bytes);
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
#endif
HWY_AFTER_NAMESPACE();

#endif  // MIXTRAL_CPU_MATMUL_FLOAT_H_
