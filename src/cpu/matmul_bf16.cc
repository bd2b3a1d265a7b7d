// Products of bf16 pairs with f32 sums, for processors with AVX512_BF16. A unit is a pair of
// neighbours in k; vdpbf16ps adds both products of a pair to the sum. The plan is that of
// matmul_float.cc: 14 × 2 vectors of sums. Interleaved bf16 are units already. This file alone is
// compiled for these instructions, and nothing in it runs before `bf16_kernels` has looked at the
// processor.

#include "cpu/matmul_kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
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

namespace mixtral::cpu {
namespace {

using Unit = uint32_t;
constexpr int kLanes = 16;
constexpr int kColumns = 2 * kLanes;
constexpr int kRows = 14;
constexpr int kStreamRows = 8;
constexpr int64_t kPrefetchRows = 6;
constexpr int64_t kMaxAhead = 512 << 10;  // bytes
constexpr int64_t kPanelUnits = panel_units(kColumns);
constexpr int64_t kRowTileUnits = row_tile_units(kRows);

constexpr int64_t bytes_of(Element element) { return element == Element::f32 ? 4 : 2; }

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

[[gnu::always_inline]] inline __m512i as_words(__m512bh v) { return reinterpret_cast<__m512i>(v); }
[[gnu::always_inline]] inline __m512bh as_pairs(__m512i v) { return reinterpret_cast<__m512bh>(v); }

/// Rounds the floats of `low`, then of `high`, to 32 bf16.
[[gnu::always_inline]] inline __m512i round_pairs(__m512 high, __m512 low) {
  return as_words(_mm512_cvtne2ps_pbh(high, low));
}

/// 16 elements as floats.
template <Element kElement>
[[gnu::always_inline]] inline __m512 load_floats(const uint8_t* from) {
  if constexpr (kElement == Element::f32) return _mm512_loadu_ps(from);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if constexpr (kElement == Element::f16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/// The first `count` of them, the rest zero.
template <Element kElement>
[[gnu::always_inline]] inline __m512 load_floats(const uint8_t* from, int64_t count) {
  if (__builtin_constant_p(count) && count == kLanes) return load_floats<kElement>(from);
  const auto mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  if constexpr (kElement == Element::f32) {
    return _mm512_maskz_loadu_ps(mask, from);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
    if constexpr (kElement == Element::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

/// Word i pairs even[i] with odd[i].
[[gnu::always_inline]] inline __m512i interleave(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, round_pairs(odd, even));
}

/// The first `count` elements of two lines of the same k, as pairs; `odd` may be null.
template <Element kElement>
[[gnu::always_inline]] inline __m512i interleave(const uint8_t* even, const uint8_t* odd,
                                                 int64_t count) {
  return interleave(load_floats<kElement>(even, count),
                    odd ? load_floats<kElement>(odd, count) : _mm512_setzero_ps());
}

/// Loads the next units' rows into the cache while these are copied: they may be pages apart.
[[gnu::always_inline]] inline void prefetch_rows(const uint8_t* row, int64_t step) {
  __builtin_prefetch(row + kPrefetchRows * step);
  __builtin_prefetch(row + (kPrefetchRows + 1) * step);
  __builtin_prefetch(row + kPrefetchRows * step + 64);
  __builtin_prefetch(row + (kPrefetchRows + 1) * step + 64);
}

/// 8 elements of k from each of 4 lines `stride` bytes apart, as bf16: one 128-bit block a line.
template <Element kElement>
[[gnu::always_inline]] inline __m512i load_blocks(const uint8_t* line, int64_t stride) {
  const uint8_t* l1 = line + stride;
  const uint8_t* l2 = l1 + stride;
  const uint8_t* l3 = l2 + stride;
  if constexpr (kElement == Element::bf16) {
    const auto load = [](const uint8_t* p) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    };
    __m512i v = _mm512_castsi128_si512(load(line));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, load(l1));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, load(l2));
    return _mm512_mask_broadcast_i32x4(v, 0xf000, load(l3));
  } else if constexpr (kElement == Element::f32) {
    const auto load = [](const uint8_t* p) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    };
    const __m512 low = _mm512_insertf32x8(_mm512_castps256_ps512(load(line)), load(l1), 1);
    const __m512 high = _mm512_insertf32x8(_mm512_castps256_ps512(load(l2)), load(l3), 1);
    return round_pairs(high, low);
  } else {
    const auto load = [](const uint8_t* p, const uint8_t* q) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
      return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
    };
    return round_pairs(load(l2, l3), load(line, l1));
  }
}

/// Bytes of a line that are transposed at once: a cache line, because lines a power of two apart
/// would push one another out of the cache before the rest is read. Many rows of sums leave
/// registers for less of bf16.
constexpr int chunk_for(Element element, int rows) {
  return element == Element::f32 || rows <= 4 ? 64 : 32;
}

/// Reads kBytes from each of 16 lines, `stride` bytes apart, and transposes them: out[u] holds unit
/// u of every line.
template <Element kElement, int kBytes>
[[gnu::always_inline]] inline void transpose(const uint8_t* base, int64_t stride, __m512i* out) {
  constexpr int kN = kBytes / (8 * bytes_of(kElement));
  __m512i v[kN][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j, base += stride)
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n)
      v[n][j] = load_blocks<kElement>(base + n * 8 * bytes_of(kElement), 4 * stride);
#pragma GCC unroll 4
  for (int n = 0; n < kN; ++n) {
    const __m512i low01 = _mm512_unpacklo_epi32(v[n][0], v[n][1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[n][2], v[n][3]);
    const __m512i high01 = _mm512_unpackhi_epi32(v[n][0], v[n][1]);
    const __m512i high23 = _mm512_unpackhi_epi32(v[n][2], v[n][3]);
    out[4 * n] = _mm512_unpacklo_epi64(low01, low23);
    out[4 * n + 1] = _mm512_unpackhi_epi64(low01, low23);
    out[4 * n + 2] = _mm512_unpacklo_epi64(high01, high23);
    out[4 * n + 3] = _mm512_unpackhi_epi64(high01, high23);
  }
}

/// Copies the last `bytes` of `lines` lines to a zero-padded block for `transpose`.
template <int kBytes>
void copy_tail(const uint8_t* base, int64_t stride, int64_t lines, int64_t bytes, uint8_t* tail) {
  __builtin_memset(tail, 0, kLanes * kBytes);
  for (int64_t l = 0; l < smaller(lines, kLanes); ++l)
    __builtin_memcpy(tail + l * kBytes, base + l * stride, static_cast<size_t>(bytes));
}

template <Element kElement>
void pack_contiguous_columns(const Block& block, Unit* panel) {
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kTake = 64 / kSize;
  constexpr int kUnits = kTake / 2;
  const int64_t stride = block.operand.stride * kSize;
  const auto* base =
      static_cast<const uint8_t*>(block.operand.data) + block.line * stride + block.k * kSize;
  __m512i v[kUnits];
  for (int64_t line = 0; line < block.lines; line += kColumns, panel += kPanelUnits) {
    for (int half = 0; half < 2; ++half, base += kLanes * stride) {
      Unit* to = panel + half * kLanes;
      const int64_t lines = smaller(block.lines - line - half * kLanes, kLanes);
      if (lines <= 0) {
        for (int64_t u = 0; u < (block.count + 1) / 2; ++u)
          _mm512_store_si512(to + u * kColumns, _mm512_setzero_si512());
        continue;
      }
      int64_t k = 0;
      if (lines == kLanes)
        for (; k + kTake <= block.count; k += kTake, to += kUnits * kColumns) {
          transpose<kElement, 64>(base + k * kSize, stride, v);
#pragma GCC unroll 16
          for (int u = 0; u < kUnits; ++u) _mm512_store_si512(to + u * kColumns, v[u]);
        }
      for (; k < block.count; k += kTake, to += kUnits * kColumns) {
        alignas(64) uint8_t tail[kLanes * 64];
        const int64_t count = smaller(kTake, block.count - k);
        copy_tail<64>(base + k * kSize, stride, lines, count * kSize, tail);
        transpose<kElement, 64>(tail, 64, v);
        for (int u = 0; u < (count + 1) / 2; ++u) _mm512_store_si512(to + u * kColumns, v[u]);
      }
    }
  }
}

template <Element kElement>
void pack_strided_columns(const Block& block, Unit* panel) {
  constexpr int64_t kSize = bytes_of(kElement);
  const int64_t step = block.operand.stride * kSize;
  const auto* even =
      static_cast<const uint8_t*>(block.operand.data) + block.k * step + block.line * kSize;
  for (int64_t k = 0; k < block.count; k += 2, even += 2 * step, panel += kColumns) {
    const uint8_t* odd = k + 1 < block.count ? even + step : nullptr;
    Unit* to = panel;
    int64_t line = 0;
    if (odd)
      for (; line + kColumns <= block.lines; line += kColumns, to += kPanelUnits)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = (line + half * kLanes) * kSize;
          if (half == 0) prefetch_rows(even + at, step);
          _mm512_store_si512(to + half * kLanes, interleave<kElement>(even + at, odd + at, kLanes));
        }
    for (; line < block.lines; line += kColumns, to += kPanelUnits)
      for (int half = 0; half < 2; ++half) {
        const int64_t at = (line + half * kLanes) * kSize;
        const int64_t count = block.lines - line - half * kLanes;
        _mm512_store_si512(to + half * kLanes,
                           count > 0
                               ? interleave<kElement>(even + at, odd ? odd + at : nullptr, count)
                               : _mm512_setzero_si512());
      }
  }
}

template <Element kElement>
void pack_columns_of(const Block& block, Unit* panel) {
  block.operand.layout == Layout::k_contiguous ? pack_contiguous_columns<kElement>(block, panel)
                                               : pack_strided_columns<kElement>(block, panel);
}

void pack_columns(const Block& block, void* panel) {
  switch (block.operand.element) {
    case Element::f32:
      return pack_columns_of<Element::f32>(block, static_cast<Unit*>(panel));
    case Element::bf16:
      return pack_columns_of<Element::bf16>(block, static_cast<Unit*>(panel));
    case Element::f16:
      return pack_columns_of<Element::f16>(block, static_cast<Unit*>(panel));
  }
}

template <Element kElement>
void pack_rows_of(const Block& block, Unit* tile) {
  constexpr int64_t kSize = bytes_of(kElement);
  const int64_t step = block.operand.stride * kSize;
  const auto* data = static_cast<const uint8_t*>(block.operand.data);
  if (block.operand.layout == Layout::k_contiguous) {
    data += block.line * step + block.k * kSize;
    for (int64_t line = 0; line < block.lines; line += kRows, tile += kRowTileUnits) {
      Unit* to = tile;
      const int64_t rows = smaller(block.lines - line, kRows);
      for (int64_t r = 0; r < rows; ++r, data += step, to += kRowStride) {
        int64_t k = 0;
        for (; k + 32 <= block.count; k += 32)
          _mm512_storeu_si512(to + k / 2,
                              round_pairs(load_floats<kElement>(data + (k + 16) * kSize, 16),
                                          load_floats<kElement>(data + k * kSize, 16)));
        if (const int64_t count = block.count - k; count > 0)
          _mm512_storeu_si512(
              to + k / 2,
              round_pairs(count > 16 ? load_floats<kElement>(data + (k + 16) * kSize, count - 16)
                                     : _mm512_setzero_ps(),
                          load_floats<kElement>(data + k * kSize, count)));
      }
    }
  } else {
    data += block.k * step + block.line * kSize;
    for (int64_t k = 0; k < block.count; k += 2, data += 2 * step, tile += kRows) {
      Unit* to = tile;  // a vector may reach into the tile's next unit, which is written later
      const uint8_t* even = data;
      const uint8_t* odd = k + 1 < block.count ? data + step : nullptr;
      int64_t lines = block.lines;
      if (odd)
        for (; lines >= kLanes; lines -= kRows, to += kRowTileUnits) {
          prefetch_rows(even, step);
          _mm512_storeu_si512(to, interleave<kElement>(even, odd, kLanes));
          even += kRows * kSize;
          odd += kRows * kSize;
        }
      for (; lines > 0; lines -= kRows, to += kRowTileUnits) {
        _mm512_storeu_si512(to, interleave<kElement>(even, odd, smaller(lines, kRows)));
        even += kRows * kSize;
        if (odd) odd += kRows * kSize;
      }
    }
  }
}

void pack_rows(const Block& block, void* tiles) {
  switch (block.operand.element) {
    case Element::f32:
      return pack_rows_of<Element::f32>(block, static_cast<Unit*>(tiles));
    case Element::bf16:
      return pack_rows_of<Element::bf16>(block, static_cast<Unit*>(tiles));
    case Element::f16:
      return pack_rows_of<Element::f16>(block, static_cast<Unit*>(tiles));
  }
}

/// c[0 .. count) = scale · sum (+ c), count <= 16.
[[gnu::always_inline]] inline void finish(__m512 sum, float* c, int64_t count, __m512 scale,
                                          bool accumulate) {
  const auto mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  const __m512 v = accumulate ? _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, c))
                              : _mm512_mul_ps(sum, scale);
  _mm512_mask_storeu_ps(c, mask, v);
}

/// The same for a tile whose rows lie in columns of c.
void finish_transposed(const Tile& t) {
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
  constexpr int64_t kRowStep = kLayout == Layout::k_contiguous ? kRowStride : 1;
  constexpr int64_t kUnitStep = kLayout == Layout::k_contiguous ? 1 : kRows;
  __m512 sum[kM][2];
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    sum[r][0] = t.first ? _mm512_setzero_ps() : _mm512_load_ps(t.partial + r * kColumns);
    sum[r][1] = t.first ? _mm512_setzero_ps() : _mm512_load_ps(t.partial + r * kColumns + kLanes);
  }
  if (t.last && !t.transposed)  // c is needed when the sums are done
    for (int r = 0; r < kM; ++r) {
      __builtin_prefetch(t.c + r * t.c_stride);
      __builtin_prefetch(t.c + r * t.c_stride + t.columns - 1);
    }
  const auto* a = static_cast<const int*>(t.a);
  const auto* b = static_cast<const Unit*>(t.b);
  const auto* b_half = b + t.b_half;
  const char* ahead = t.ahead;
  int64_t in_row = t.ahead_row;
  for (int64_t u = 0; u < t.units; ++u, a += kUnitStep, b += t.b_step, b_half += t.b_step) {
    if (u < t.ahead_lines) {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + t.ahead_half, 0, 2);
      ahead += 64;
      if (--in_row == 0) {
        in_row = t.ahead_row;
        ahead += t.ahead_jump;
      }
    }
    const __m512bh b0 = as_pairs(_mm512_loadu_si512(b));
    const __m512bh b1 = as_pairs(_mm512_loadu_si512(b_half));
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r) {
      const __m512bh x = as_pairs(_mm512_set1_epi32(a[r * kRowStep]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  }
  if (!t.last || t.transposed) {
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r) {
      _mm512_store_ps(t.partial + r * kColumns, sum[r][0]);
      _mm512_store_ps(t.partial + r * kColumns + kLanes, sum[r][1]);
    }
    if (t.last) finish_transposed(t);
    return;
  }
  const __m512 scale = _mm512_set1_ps(t.scale);
  float* c = t.c;
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r, c += t.c_stride) {
    finish(sum[r][0], c, t.columns, scale, t.accumulate);
    if (t.columns > kLanes) finish(sum[r][1], c + kLanes, t.columns - kLanes, scale, t.accumulate);
  }
}

template <Layout kLayout>
constexpr void (*kTiles[kRows])(const Tile&) = {
    run_tile<1, kLayout>,  run_tile<2, kLayout>,  run_tile<3, kLayout>,  run_tile<4, kLayout>,
    run_tile<5, kLayout>,  run_tile<6, kLayout>,  run_tile<7, kLayout>,  run_tile<8, kLayout>,
    run_tile<9, kLayout>,  run_tile<10, kLayout>, run_tile<11, kLayout>, run_tile<12, kLayout>,
    run_tile<13, kLayout>, run_tile<14, kLayout>};

void tile(const Tile& t) {
  (t.layout == Layout::k_contiguous ? kTiles<Layout::k_contiguous>
                                    : kTiles<Layout::k_strided>)[t.rows - 1](t);
}

template <int kM, int kGroups>
[[gnu::always_inline]] inline void clear(__m512 (&sum)[kM][kGroups]) {
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) sum[r][g] = _mm512_setzero_ps();
}

/// Writes the results of `lines` lines from `done` on.
template <int kM, int kGroups>
[[gnu::always_inline]] inline void finish_lines(const Stream& s, int64_t done, int64_t lines,
                                                const __m512 (&sum)[kM][kGroups]) {
  const __m512 scale = _mm512_set1_ps(s.scale);
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g)
      finish(sum[r][g], s.c + done + g * kLanes + r * s.c_stride, lines - g * kLanes, scale,
             s.accumulate);
}

/// kGroups vectors of lines for kM rows at a time; `lines` may be fewer in the last.
template <Element kElement, int kM, int kGroups>
void stream_lines(const Stream& s, int64_t done, int64_t lines) {
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int kBytes = chunk_for(kElement, kM);
  constexpr int64_t kTake = kBytes / kSize;
  constexpr int kUnits = kTake / 2;
  const int64_t stride = s.b.operand.stride * kSize;
  const int64_t count = s.b.count;
  const auto* base = static_cast<const uint8_t*>(s.b.operand.data) + (s.b.line + done) * stride;
  const auto* a = static_cast<const int*>(s.a);
  __m512 sum[kM][kGroups];
  clear(sum);
  __m512i v[kUnits];
  const auto multiply = [&](int64_t unit, int64_t units, int g) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      if (u >= units) break;
#pragma GCC unroll 8
      for (int r = 0; r < kM; ++r)
        sum[r][g] = _mm512_dpbf16_ps(
            sum[r][g], as_pairs(_mm512_set1_epi32(a[r * s.a_stride + unit + u])), as_pairs(v[u]));
    }
  };
  int64_t k = 0;
  if (lines == kGroups * kLanes) {
    // Fetch the next lines into the L2 cache meanwhile, in the order of memory: the processor's own
    // prefetching is slow to start on short lines. (Fetching into L1 was measured to halve the
    // rate.)
    const int64_t fetch = lines * stride <= kMaxAhead ? kGroups * kLanes * kBytes : 0;
    const bool last = done + lines == s.b.lines && s.next;
    const uint8_t* ahead = last ? static_cast<const uint8_t*>(s.next) : base + lines * stride;
    for (; k + kTake <= count; k += kTake) {
      for (const uint8_t* end = ahead + fetch; ahead < end; ahead += 64)
        __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        transpose<kElement, kBytes>(base + g * kLanes * stride + k * kSize, stride, v);
        multiply(k / 2, kUnits, g);
      }
    }
  }
  for (; k < count; k += kTake) {
    alignas(64) uint8_t tail[kLanes * kBytes];
    const int64_t rest = smaller(kTake, count - k);
    for (int g = 0; g < kGroups; ++g) {
      copy_tail<kBytes>(base + g * kLanes * stride + k * kSize, stride, lines - g * kLanes,
                        rest * kSize, tail);
      transpose<kElement, kBytes>(tail, kBytes, v);
      multiply(k / 2, (rest + 1) / 2, g);
    }
  }
  finish_lines(s, done, lines, sum);
}

/// Few rows need one bundle at a time, which the processor itself reads ahead; see
/// matmul_float_stream.cc.
constexpr int kBundleRows = 2;

/// The same of kGroups bundles of interleaved bf16, whose words are units.
template <int kM, int kGroups>
void stream_bundles(const Stream& s, int64_t done) {
  constexpr int kWords = 4;  // at a time
  const int64_t words = s.b.count / 2, bundle = words * kLanes;
  const Unit* from =
      static_cast<const Unit*>(s.b.operand.data) + (s.b.line + done) / kInterleavedLines * bundle;
  const auto* a = static_cast<const int*>(s.a);
  __m512 sum[kM][kGroups];
  clear(sum);
  const int64_t bytes = 4 * kGroups * bundle;
  const int64_t fetch = kM > kBundleRows && bytes <= kMaxAhead ? 64 * kGroups * kWords : 0;
  const bool last = done + kGroups * kLanes == s.b.lines && s.next;
  const auto* ahead =
      last ? static_cast<const uint8_t*>(s.next) : reinterpret_cast<const uint8_t*>(from) + bytes;
  const auto multiply = [&](int64_t word) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const __m512bh b = as_pairs(_mm512_loadu_si512(from + g * bundle + word * kLanes));
#pragma GCC unroll 8
      for (int r = 0; r < kM; ++r)
        sum[r][g] =
            _mm512_dpbf16_ps(sum[r][g], as_pairs(_mm512_set1_epi32(a[r * s.a_stride + word])), b);
    }
  };
  int64_t w = 0;
  for (; w + kWords <= words; w += kWords) {
    for (const uint8_t* end = ahead + fetch; ahead < end; ahead += 64)
      __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
    for (int i = 0; i < kWords; ++i) multiply(w + i);
  }
  for (; w < words; ++w) multiply(w);
  finish_lines(s, done, kGroups * kLanes, sum);
}

template <Element kElement, int kM>
void stream_rows(const Stream& s) {
  int64_t done = 0;
  if (kElement == Element::bf16 && s.b.operand.layout == Layout::interleaved) {
    constexpr int kGroups = kM <= kBundleRows ? 1 : 2;
    for (; done + kGroups * kLanes <= s.b.lines; done += kGroups * kLanes)
      stream_bundles<kM, kGroups>(s, done);
    for (; done < s.b.lines; done += kLanes) stream_bundles<kM, 1>(s, done);
    return;
  }
  for (; done + 2 * kLanes <= s.b.lines; done += 2 * kLanes)
    stream_lines<kElement, kM, 2>(s, done, 2 * kLanes);
  for (; done < s.b.lines; done += kLanes)
    stream_lines<kElement, kM, 1>(s, done, smaller(s.b.lines - done, kLanes));
}

template <Element kElement>
constexpr void (*kStreams[kStreamRows])(const Stream&) = {
    stream_rows<kElement, 1>, stream_rows<kElement, 2>, stream_rows<kElement, 3>,
    stream_rows<kElement, 4>, stream_rows<kElement, 5>, stream_rows<kElement, 6>,
    stream_rows<kElement, 7>, stream_rows<kElement, 8>};

void stream(const Stream& s) {
  switch (s.b.operand.element) {
    case Element::f32:
      return kStreams<Element::f32>[s.rows - 1](s);
    case Element::bf16:
      return kStreams<Element::bf16>[s.rows - 1](s);
    case Element::f16:
      return kStreams<Element::f16>[s.rows - 1](s);
  }
}

constexpr Kernels kTable{kRows, kColumns, 2, kStreamRows, pack_rows, pack_columns, tile, stream};

/// Twelve chains of products of pairs. Returns the multiply-adds of a step.
int64_t spin(int64_t steps) {
  constexpr int kChains = 12;
  const __m512bh a = as_pairs(_mm512_set1_epi32(0x3f803f80)), b = as_pairs(_mm512_set1_epi32(0));
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  asm volatile("" : : "m"(sums));
  return int64_t{kChains} * 2 * kLanes;
}

}  // namespace

const Kernels* const kPairKernels = &kTable;
int64_t (*const kSpinPairs)(int64_t steps) = spin;

}  // namespace mixtral::cpu

#else

namespace mixtral::cpu {

const Kernels* const kPairKernels = nullptr;
int64_t (*const kSpinPairs)(int64_t steps) = nullptr;

}  // namespace mixtral::cpu

#endif
