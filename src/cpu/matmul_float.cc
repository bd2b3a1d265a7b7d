// Products of floats for each instruction set (Highway compiles this file once for each).
//
// A tile is 14 × 2 vectors where there are 32 wide registers (28 sums, 2 columns of B, rows of A
// broadcast from memory), 6 × 2 where there are 16, 12 × 2 on NEON.

#include "cpu/matmul_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_float.cc"
// AVX2 (with FMA), AVX-512 and NEON: chains of multiply-adds give the same bits on all of them.
// Vectors of unknown size cannot be tiled.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
#if HWY_TARGET == HWY_SCALAR
const Kernels* get_float_kernels() { return nullptr; }
#else
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

/// Reads kN · 16 bytes from each of kLanes lines (line l at base + l · stride bytes) and transposes
/// them as 32-bit words: out[w] holds word w of every line. Each vector first gathers one 128-bit
/// block from each of kBlocks lines, so that 4 × 4 transposes within blocks suffice.
template <int kN>
HWY_INLINE void transpose(const uint8_t* base, int64_t stride, V* out) {
  const F f;
  const W w;
  const auto lane = hn::Iota(f, 0.0f);
  V v[kN][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j, base += stride) {
    const uint8_t* line = base;
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b, line += 4 * stride) {
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

/// The elements of k in words [0, words) that `transpose` gave, one vector each.
template <Element kElement, bool kRound, int kWords>
HWY_INLINE void store_words(const V* words, float* panel) {
  const F f;
#pragma GCC unroll 16
  for (int i = 0; i < kWords; ++i) {
    if constexpr (kElement == Element::f32) {
      hn::Store(kRound ? round_bf16(words[i]) : words[i], f, panel + i * kColumns);
    } else {
      V even, odd;
      split_pair<kElement>(hn::BitCast(U(), words[i]), even, odd);
      hn::Store(kRound ? round_bf16(even) : even, f, panel + 2 * i * kColumns);
      hn::Store(kRound ? round_bf16(odd) : odd, f, panel + (2 * i + 1) * kColumns);
    }
  }
}

/// Copies the last `bytes` < kBytes bytes of `lines` lines to a zero-padded block of kLanes lines
/// kBytes apart, for `transpose`.
template <int kBytes>
void copy_tail(const uint8_t* base, int64_t stride, int64_t lines, int64_t bytes, uint8_t* tail) {
  std::memset(tail, 0, kLanes * kBytes);
  for (int64_t l = 0; l < HWY_MIN(lines, int64_t{kLanes}); ++l)
    std::memcpy(tail + l * kBytes, base + l * stride, static_cast<size_t>(bytes));
}

template <Element kElement, bool kRound>
void pack_contiguous_columns(const Block& block, float* panel) {
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kTake = kChunk / kSize;  // elements of a line
  const int64_t stride = block.operand.stride * kSize;
  const auto* base =
      static_cast<const uint8_t*>(block.operand.data) + block.line * stride + block.k * kSize;
  V words[4 * kSteps];
  for (int64_t line = 0; line < block.lines; line += kColumns, panel += kPanelUnits) {
    for (int half = 0; half < 2; ++half, base += kLanes * stride) {
      float* to = panel + half * kLanes;
      const int64_t lines = HWY_MIN(block.lines - line - half * kLanes, int64_t{kLanes});
      if (lines <= 0) {
        for (int64_t k = 0; k < block.count; ++k) hn::Store(hn::Zero(F()), F(), to + k * kColumns);
        continue;
      }
      int64_t k = 0;
      if (lines == kLanes)
        for (; k + kTake <= block.count; k += kTake, to += kTake * kColumns) {
          transpose<kSteps>(base + k * kSize, stride, words);
          store_words<kElement, kRound, 4 * kSteps>(words, to);
        }
      for (; k < block.count; k += kTake, to += kTake * kColumns) {
        alignas(64) uint8_t tail[kLanes * kChunk];
        alignas(64) float unpacked[kTake * kColumns];
        const int64_t count = HWY_MIN(kTake, block.count - k);
        copy_tail<kChunk>(base + k * kSize, stride, lines, count * kSize, tail);
        transpose<kSteps>(tail, kChunk, words);
        store_words<kElement, kRound, 4 * kSteps>(words, unpacked);
        for (int64_t i = 0; i < count; ++i)
          hn::Store(hn::Load(F(), unpacked + i * kColumns), F(), to + i * kColumns);
      }
    }
  }
}

/// A vector of elements as floats.
template <Element kElement>
HWY_INLINE V load_elements(const uint8_t* from) {
  if constexpr (kElement == Element::f32) {
    return hn::LoadU(F(), reinterpret_cast<const float*>(from));
  } else {
    const auto half = hn::LoadU(hn::Rebind<uint16_t, F>(), reinterpret_cast<const uint16_t*>(from));
    const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(U(), half));
    if constexpr (kElement == Element::bf16)
      return hn::BitCast(F(), bits);
    else
      return from_half(bits);
  }
}

/// Copies `count` elements to floats. May write up to the next multiple of kLanes.
template <Element kElement, bool kRound>
HWY_INLINE void copy_line(const uint8_t* from, int64_t count, float* to) {
  const F f;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V v = load_elements<kElement>(from + i * bytes_of(kElement));
    hn::StoreU(kRound ? round_bf16(v) : v, f, to + i);
  }
  if (i < count && kElement == Element::f32 && HWY_MAX_BYTES >= 32) {
    const V v = hn::MaskedLoad(hn::FirstN(f, static_cast<size_t>(count - i)), f,
                               reinterpret_cast<const float*>(from) + i);
    hn::StoreU(kRound ? round_bf16(v) : v, f, to + i);
  } else if (i < count) {  // other vectors' masked loads may read past the end
    alignas(64) uint8_t tail[kLanes * 4] = {};
    std::memcpy(tail, from + i * bytes_of(kElement),
                static_cast<size_t>((count - i) * bytes_of(kElement)));
    const V v = load_elements<kElement>(tail);
    hn::StoreU(kRound ? round_bf16(v) : v, f, to + i);
  }
}

/// Loads the lines' next rows into the cache while this one is copied: they may be pages apart.
HWY_INLINE void prefetch_row(const uint8_t* row, int64_t step) {
  __builtin_prefetch(row + kPrefetchRows * step);
  __builtin_prefetch(row + kPrefetchRows * step + 64);
}

template <Element kElement, bool kRound>
void pack_strided_columns(const Block& block, float* panel) {
  constexpr int64_t kSize = bytes_of(kElement);
  const auto* base = static_cast<const uint8_t*>(block.operand.data) +
                     (block.k * block.operand.stride + block.line) * kSize;
  const int64_t step = block.operand.stride * kSize;
  const int64_t whole = block.lines / kColumns * kColumns;
  const F f;
  for (int64_t k = 0; k < block.count; ++k, base += step, panel += kColumns) {
    float* to = panel;
    for (int64_t line = 0; line < whole; line += kColumns, to += kPanelUnits) {
      const uint8_t* from = base + line * kSize;
      prefetch_row(from, step);
      const V low = load_elements<kElement>(from);
      const V high = load_elements<kElement>(from + kLanes * kSize);
      hn::Store(kRound ? round_bf16(low) : low, f, to);
      hn::Store(kRound ? round_bf16(high) : high, f, to + kLanes);
    }
    if (whole < block.lines) {
      hn::Store(hn::Zero(f), f, to + kLanes);
      copy_line<kElement, kRound>(base + whole * kSize, block.lines - whole, to);
    }
  }
}

template <Element kElement, bool kRound>
void pack_columns_of(const Block& block, float* panel) {
  if (block.operand.layout == Layout::k_contiguous)
    pack_contiguous_columns<kElement, kRound>(block, panel);
  else
    pack_strided_columns<kElement, kRound>(block, panel);
}

void pack_columns(const Block& block, void* panel_memory) {
  auto* panel = static_cast<float*>(panel_memory);
  switch (block.operand.element) {
    case Element::f32:
      return block.round ? pack_columns_of<Element::f32, true>(block, panel)
                         : pack_columns_of<Element::f32, false>(block, panel);
    case Element::bf16:
      return pack_columns_of<Element::bf16, false>(block, panel);
    case Element::f16:
      return block.round ? pack_columns_of<Element::f16, true>(block, panel)
                         : pack_columns_of<Element::f16, false>(block, panel);
  }
}

template <Element kElement, bool kRound>
void pack_rows_of(const Block& block, float* tile) {
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kWhole = (kRows + kLanes - 1) / kLanes * kLanes;
  const auto* data = static_cast<const uint8_t*>(block.operand.data);
  const int64_t stride = block.operand.stride * kSize;
  if (block.operand.layout == Layout::k_contiguous) {
    data += block.line * stride + block.k * kSize;
    for (int64_t line = 0; line < block.lines; line += kRows, tile += kRowTileUnits)
      for (int64_t r = 0; r < HWY_MIN(block.lines - line, int64_t{kRows}); ++r, data += stride)
        copy_line<kElement, kRound>(data, block.count, tile + r * kRowStride);
  } else {
    data += block.k * stride + block.line * kSize;
    for (int64_t k = 0; k < block.count; ++k, data += stride, tile += kRows) {
      float* to = tile;  // a vector may reach into the tile's next unit, which is written later
      const uint8_t* from = data;
      int64_t lines = block.lines;
      for (; lines >= kWhole; lines -= kRows, from += kRows * kSize, to += kRowTileUnits) {
        prefetch_row(from, stride);
        copy_line<kElement, kRound>(from, kWhole, to);
      }
      for (; lines >= kRows; lines -= kRows, from += kRows * kSize, to += kRowTileUnits)
        copy_line<kElement, kRound>(from, kRows, to);
      if (lines > 0) copy_line<kElement, kRound>(from, lines, to);
    }
  }
}

void pack_rows(const Block& block, void* tile_memory) {
  auto* tiles = static_cast<float*>(tile_memory);
  switch (block.operand.element) {
    case Element::f32:
      return block.round ? pack_rows_of<Element::f32, true>(block, tiles)
                         : pack_rows_of<Element::f32, false>(block, tiles);
    case Element::bf16:
      return pack_rows_of<Element::bf16, false>(block, tiles);
    case Element::f16:
      return block.round ? pack_rows_of<Element::f16, true>(block, tiles)
                         : pack_rows_of<Element::f16, false>(block, tiles);
  }
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

/// The same for a tile whose rows lie in columns of c.
HWY_INLINE void finish_transposed(const Tile& t) {
  for (int64_t j = 0; j < t.columns; ++j) {
    float* c = t.c + j * t.c_stride;
    for (int r = 0; r < t.rows; ++r) {
      const float sum = t.partial[r * kColumns + j];
      c[r] = t.accumulate ? __builtin_fmaf(sum, t.scale, c[r]) : sum * t.scale;
    }
  }
}

template <int kM, Layout kLayout>
void run_tile(const Tile& t) {
  const F f;
  constexpr int64_t kRowStep = kLayout == Layout::k_contiguous ? kRowStride : 1;
  constexpr int64_t kUnitStep = kLayout == Layout::k_contiguous ? 1 : kRows;
  V sum[kM][2];
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    sum[r][0] = t.first ? hn::Zero(f) : hn::Load(f, t.partial + r * kColumns);
    sum[r][1] = t.first ? hn::Zero(f) : hn::Load(f, t.partial + r * kColumns + kLanes);
  }
  if (t.last && !t.transposed)  // c is needed when the sums are done
    for (int r = 0; r < kM; ++r) {
      __builtin_prefetch(t.c + r * t.c_stride);
      __builtin_prefetch(t.c + r * t.c_stride + t.columns - 1);
    }
  const auto* a = static_cast<const float*>(t.a);
  const auto* b = static_cast<const float*>(t.b);
  for (int64_t k = 0; k < t.units; ++k, a += kUnitStep, b += kColumns) {
    const V b0 = hn::Load(f, b);
    const V b1 = hn::Load(f, b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r) {
      const V x = hn::Set(f, a[r * kRowStep]);
      sum[r][0] = hn::MulAdd(x, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(x, b1, sum[r][1]);
    }
  }
  if (t.last && !t.transposed && t.columns == kColumns) {
    const V s = hn::Set(f, t.scale);
    float* c = t.c;
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r, c += t.c_stride) {
      if (t.accumulate) {
        hn::StoreU(hn::MulAdd(sum[r][0], s, hn::LoadU(f, c)), f, c);
        hn::StoreU(hn::MulAdd(sum[r][1], s, hn::LoadU(f, c + kLanes)), f, c + kLanes);
      } else {
        hn::StoreU(hn::Mul(sum[r][0], s), f, c);
        hn::StoreU(hn::Mul(sum[r][1], s), f, c + kLanes);
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    hn::Store(sum[r][0], f, t.partial + r * kColumns);
    hn::Store(sum[r][1], f, t.partial + r * kColumns + kLanes);
  }
  if (!t.last) return;
  if (t.transposed) return finish_transposed(t);
  for (int r = 0; r < kM; ++r)
    finish_row(t.partial + r * kColumns, t.c + r * t.c_stride, t.columns, t.scale, t.accumulate);
}

using TileFunction = void (*)(const Tile&);

template <Layout kLayout, int... kM>
void choose_tile(const Tile& tile, std::integer_sequence<int, kM...>) {
  static constexpr TileFunction kTable[] = {run_tile<kM + 1, kLayout>...};
  kTable[tile.rows - 1](tile);
}

void tile(const Tile& t) {
  constexpr std::make_integer_sequence<int, kRows> kSizes;
  t.layout == Layout::k_contiguous ? choose_tile<Layout::k_contiguous>(t, kSizes)
                                   : choose_tile<Layout::k_strided>(t, kSizes);
}

/// sum[r] += a[r, k] · (element k of each line), for `count` elements of k in kWords words.
template <Element kElement, int kWords, int kM, int kGroups>
HWY_INLINE void multiply_words(const V* words, const float* a, int64_t a_stride, int count,
                               bool round, int group, V (&sum)[kM][kGroups]) {
  const F f;
  constexpr int kPerWord = kElement == Element::f32 ? 1 : 2;
#pragma GCC unroll 16
  for (int w = 0; w < kWords; ++w) {
    if (w * kPerWord >= count) break;
    V v[2] = {words[w], words[w]};
    if constexpr (kPerWord == 2) split_pair<kElement>(hn::BitCast(U(), words[w]), v[0], v[1]);
#pragma GCC unroll 2
    for (int i = 0; i < kPerWord; ++i) {
      if (kElement != Element::bf16 && round) v[i] = round_bf16(v[i]);
      if (w * kPerWord + i >= count) break;
#pragma GCC unroll 8
      for (int r = 0; r < kM; ++r)
        sum[r][group] =
            hn::MulAdd(hn::Set(f, a[r * a_stride + w * kPerWord + i]), v[i], sum[r][group]);
    }
  }
}

/// kGroups vectors of lines for kM rows at a time; `lines` may be fewer in the last.
template <Element kElement, int kM, int kGroups>
void stream_lines(const Stream& s, int64_t done, int64_t lines) {
  const F f;
  constexpr int kN = steps_for(kM);
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kTake = 16 * kN / kSize;
  const int64_t stride = s.b.operand.stride * kSize;
  const int64_t count = s.b.count;
  const auto* base = static_cast<const uint8_t*>(s.b.operand.data) + (s.b.line + done) * stride;
  const auto* a = static_cast<const float*>(s.a);
  V sum[kM][kGroups];
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) sum[r][g] = hn::Zero(f);
  V words[4 * kN];
  int64_t k = 0;
  if (lines == kGroups * kLanes) {
    // Fetch the next lines into the L2 cache meanwhile, in the order of memory: the processor's own
    // prefetching is slow to start on short lines. (Fetching into L1 was measured to halve the
    // rate.)
    const int64_t fetch = lines * stride <= kMaxAhead ? kGroups * kLanes * 16 * kN : 0;
    const uint8_t* ahead = base + lines * stride;
    for (; k + kTake <= count; k += kTake) {
      for (const uint8_t* end = ahead + fetch; ahead < end; ahead += 64)
        __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        transpose<kN>(base + g * kLanes * stride + k * kSize, stride, words);
        multiply_words<kElement, 4 * kN>(words, a + k, s.a_stride, kTake, s.b.round, g, sum);
      }
    }
  }
  for (; k < count; k += kTake) {
    alignas(64) uint8_t tail[kLanes * 16 * kN];
    const int64_t rest = HWY_MIN(kTake, count - k);
    for (int g = 0; g < kGroups; ++g) {
      copy_tail<16 * kN>(base + g * kLanes * stride + k * kSize, stride, lines - g * kLanes,
                         rest * kSize, tail);
      transpose<kN>(tail, 16 * kN, words);
      multiply_words<kElement, 4 * kN>(words, a + k, s.a_stride, static_cast<int>(rest), s.b.round,
                                       g, sum);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r) {
    alignas(64) float row[kGroups * kLanes];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) hn::Store(sum[r][g], f, row + g * kLanes);
    finish_row(row, s.c + done + r * s.c_stride, lines, s.scale, s.accumulate);
  }
}

template <Element kElement, int kM>
void stream_rows(const Stream& s) {
  int64_t done = 0;
  for (; done + 2 * kLanes <= s.b.lines; done += 2 * kLanes)
    stream_lines<kElement, kM, 2>(s, done, 2 * kLanes);
  for (; done < s.b.lines; done += kLanes)
    stream_lines<kElement, kM, 1>(s, done, HWY_MIN(s.b.lines - done, int64_t{kLanes}));
}

template <Element kElement, int... kM>
void choose_stream(const Stream& s, std::integer_sequence<int, kM...>) {
  static constexpr void (*kTable[])(const Stream&) = {stream_rows<kElement, kM + 1>...};
  kTable[s.rows - 1](s);
}

void stream(const Stream& s) {
  constexpr std::make_integer_sequence<int, kStreamRows> kSizes;
  switch (s.b.operand.element) {
    case Element::f32:
      return choose_stream<Element::f32>(s, kSizes);
    case Element::bf16:
      return choose_stream<Element::bf16>(s, kSizes);
    case Element::f16:
      return choose_stream<Element::f16>(s, kSizes);
  }
}

}  // namespace

const Kernels* get_float_kernels() {
  static constexpr Kernels kernels{kRows,     kColumns,     1,    kStreamRows,
                                   pack_rows, pack_columns, tile, stream};
  return &kernels;
}
#endif

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {

HWY_EXPORT(get_float_kernels);

const Kernels* float_kernels() { return HWY_DYNAMIC_DISPATCH(get_float_kernels)(); }

}  // namespace mixtral::cpu
#endif
