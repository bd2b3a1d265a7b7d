// Packing, and the tiles, of products of floats for each instruction set (Highway compiles this
// file once for each).

#include "cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_float.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <utility>

#include "cpu/matmul_float.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
#if HWY_TARGET == HWY_SCALAR
const Kernels* get_float_kernels() { return nullptr; }
#else
namespace {

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
      if (lines == kLanes) {
        const bool more = block.lines - line - half * kLanes >= 2 * kLanes;
        for (; k + kTake <= block.count; k += kTake, to += kTake * kColumns) {
          // The next lines, once for each cache line of theirs.
          if (more && k * kSize % 64 == 0)
            for (int64_t r = kLanes; r < 2 * kLanes; ++r)
              __builtin_prefetch(base + r * stride + k * kSize, 0, 2);
          transpose<kSteps>(base + k * kSize, stride, words);
          store_words<kElement, kRound, 4 * kSteps, kColumns>(words, to);
        }
      }
      for (; k < block.count; k += kTake, to += kTake * kColumns) {
        alignas(64) uint8_t tail[kLanes * kChunk];
        alignas(64) float unpacked[kTake * kColumns];
        const int64_t count = HWY_MIN(kTake, block.count - k);
        copy_tail<kChunk>(base + k * kSize, stride, lines, count * kSize, tail);
        transpose<kSteps>(tail, kChunk, words);
        store_words<kElement, kRound, 4 * kSteps, kColumns>(words, unpacked);
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
void pack_interleaved_columns(const Block& block, float* panel) {
  constexpr int64_t kPerWord = 4 / bytes_of(kElement);
  const int64_t first = block.k / kPerWord, words = block.count / kPerWord;
  for (int64_t line = 0; line < block.lines; line += kColumns, panel += kPanelUnits)
    for (int half = 0; half < 2; ++half) {
      float* to = panel + half * kLanes;
      if (line + half * kLanes >= block.lines) {
        for (int64_t k = 0; k < block.count; ++k) hn::Store(hn::Zero(F()), F(), to + k * kColumns);
        continue;
      }
      const float* from =
          interleaved_word(block.operand, block.line + line + half * kLanes, first, kPerWord);
      for (int64_t w = 0; w < words; ++w, to += kPerWord * kColumns) {
        const V word = hn::LoadU(F(), from + w * kInterleavedLines);
        store_words<kElement, kRound, 1, kColumns>(&word, to);
      }
    }
}

template <Element kElement, bool kRound>
void pack_columns_of(const Block& block, float* panel) {
  switch (block.operand.layout) {
    case Layout::k_contiguous:
      return pack_contiguous_columns<kElement, kRound>(block, panel);
    case Layout::k_strided:
      return pack_strided_columns<kElement, kRound>(block, panel);
    case Layout::interleaved:
      return pack_interleaved_columns<kElement, kRound>(block, panel);
  }
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

// Whether a unit takes long enough to fetch lines of b and c besides; c's next row after so many.
constexpr bool kWide = kRows * kColumns >= 256;
constexpr int64_t kUnitsPerRow = 4;

template <int kM, Layout kLayout>
void run_tile(const Tile& t) {
  const F f;
  constexpr int64_t kRowStep = kLayout == Layout::k_contiguous ? kRowStride : 1;
  const int64_t a_step = kLayout == Layout::k_contiguous ? 1 : t.a_step;
  V sum[kM][2];
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    sum[r][0] = t.first ? hn::Zero(f) : hn::Load(f, t.partial + r * kColumns);
    sum[r][1] = t.first ? hn::Zero(f) : hn::Load(f, t.partial + r * kColumns + kLanes);
  }
  // c is needed when the sums are done. Its rows are fetched one after another where there is time,
  // so that they do not stand in the way of a and b.
  const bool fetches = t.last && !t.transposed;
  const float* c_row = fetches ? t.c : static_cast<const float*>(t.a);
  const int64_t c_step = fetches ? t.c_stride : 0, c_end = fetches ? t.columns - 1 : 0;
  if constexpr (!kWide)
    for (int r = 0; r < kM; ++r) {
      __builtin_prefetch(c_row + r * c_step);
      __builtin_prefetch(c_row + r * c_step + c_end);
    }
  const auto* a = static_cast<const float*>(t.a);
  const auto* b = static_cast<const float*>(t.b);
  const auto* b_half = b + t.b_half;
  const int64_t b_step = t.b_step;
  const char* ahead = t.ahead;
  const int64_t ahead_lines = t.ahead_lines, ahead_half = t.ahead_half;
  int64_t in_row = t.ahead_row;
  for (int64_t k = 0; k < t.units; ++k, a += a_step, b += b_step, b_half += b_step) {
    if (k < ahead_lines) {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + ahead_half, 0, 2);
      ahead += 64;
      if (--in_row == 0) {
        in_row = t.ahead_row;
        ahead += t.ahead_jump;
      }
    }
    if constexpr (kWide) {
      const float* row = c_row + HWY_MIN(k / kUnitsPerRow, int64_t{kM - 1}) * c_step;
      __builtin_prefetch(row);
      __builtin_prefetch(row + c_end);
    }
    if constexpr (kWide) {
      __builtin_prefetch(b + kPrefetchUnits * b_step);
      __builtin_prefetch(b_half + kPrefetchUnits * b_step);
    }
    if constexpr (kLayout == Layout::k_strided) {
      __builtin_prefetch(a + kPrefetchUnits * a_step);
      if constexpr (kM > 8) __builtin_prefetch(a + kPrefetchUnits * a_step + kM - 1);
    }
    const V b0 = hn::LoadU(f, b);
    const V b1 = hn::LoadU(f, b_half);
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

}  // namespace

const Kernels* get_float_kernels() {
  static constexpr Kernels kernels{.rows = kRows,
                                   .columns = kColumns,
                                   .stream_rows = kStreamRows,
                                   .pack_rows = pack_rows,
                                   .pack_columns = pack_columns,
                                   .tile = tile};
  return &kernels;
}
#endif

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(get_float_kernels);

/// The kernels for this processor. matmul_float_stream.cc adds `stream`.
Kernels complete() {
  Kernels kernels = *HWY_DYNAMIC_DISPATCH(get_float_kernels)();
  kernels.stream = float_stream();
  return kernels;
}

}  // namespace

const Kernels* float_kernels() {
  if (HWY_DYNAMIC_DISPATCH(get_float_kernels)() == nullptr) return nullptr;
  static const Kernels kernels = complete();
  return &kernels;
}

}  // namespace mixtral::cpu
#endif
