#pragma once

#include <cstdint>

namespace mixtral::cpu {

// The inner loops of products C = A Bᵀ-or-B on blocks that fit the caches. A block of A is packed
// into row tiles of `rows` rows and a block of B into panels of `columns` columns, both of 32-bit
// units: a float, or (with bf16 dot products) a pair of bf16 that are neighbours in k. Floats whose
// lines are side by side may be taken where they stand. Every element of C is one chain of fused
// multiply-adds in order of k; where k is cut into blocks, the chain goes on through memory. So the
// bits do not depend on tile, blocking or row count.
//
// This header is included by files that are compiled for one instruction set: nothing in it may
// become a function that is shared with others.

/// How a matrix of A or B lies in memory. Its "lines" are rows of A or columns of B.
enum class Layout : uint8_t {
  k_contiguous,  // line l, inner index k at data[l * stride + k]
  k_strided,     // data[k * stride + l]
  /// 32-bit words of 16 lines side by side (ops::WeightLayout::interleaved16): word w of line l is
  /// word (l / 16 · words + w) · 16 + l % 16, with `words` in a line of `stride` elements. Of B.
  interleaved,
};

inline constexpr int64_t kInterleavedLines = 16;

/// Storage of an operand's elements.
enum class Element : uint8_t { f32, bf16, f16 };

struct Operand {
  const void* data = nullptr;
  int64_t stride = 0;  // elements
  Element element = Element::f32;
  Layout layout = Layout::k_contiguous;
};

/// Lines [line, line + lines) and inner indices [k, k + count) of an operand.
struct Block {
  Operand operand;
  int64_t line = 0, lines = 0;
  int64_t k = 0, count = 0;
  bool round = false;  // to bf16 (kernels of floats only; those of bf16 pairs always do)
};

/// One tile of C: `rows` rows of a packed row tile times one packed panel, over `units` units of k.
struct Tile {
  const void* a = nullptr;  // row tile
  const void* b = nullptr;  // panel, or weights in place: unit u of the first half of the columns
  int64_t a_step = 0;       // units from one of k to the next in a k_strided row tile
  int64_t b_step = 0;       // at b[u * b_step], of the second half at b[b_half + u * b_step]
  int64_t b_half = 0;
  // Cache lines that are needed soon, in pairs of rows; fetched one of each row a unit.
  const char* ahead = nullptr;
  int64_t ahead_half = 0;  // bytes from a row to the other of its pair
  int64_t ahead_row = 0;   // lines in a row
  int64_t ahead_jump = 0;  // bytes from behind a row to the next pair
  int64_t ahead_lines = 0;
  int64_t units = 0;
  int rows = 0;
  Layout layout = Layout::k_contiguous;  // of the row tile: [rows][kRowStride], or [units][rows]
  bool first = true;                     // start from 0, otherwise from `partial`
  bool last = true;                      // finish into c, otherwise store to `partial`
  float* partial = nullptr;              // [rows][columns], aligned
  float* c = nullptr;                    // c = scale · sum (+ c if accumulate)
  int64_t c_stride = 0;
  int64_t columns = 0;  // that exist in c, at most the kernel's
  float scale = 1;
  bool accumulate = false;
  bool transposed = false;  // row r, column j goes to c[j * c_stride + r]
};

/// Few rows of A times many lines of B: c[r, j] for lines [line, line + lines). B is k_contiguous
/// or interleaved. Each of its lines is read once, without packing.
struct Stream {
  const void* a = nullptr;  // [rows][a_stride], units
  int64_t a_stride = 0;
  int rows = 0;
  Block b;                     // k = 0, count = all
  const void* next = nullptr;  // the lines that the thread probably needs after these
  float* c = nullptr;
  int64_t c_stride = 0;
  float scale = 1;
  bool accumulate = false;
};

/// Most units of k in a packed block, and the distance of a row tile's rows when k is contiguous:
/// off a power of two, so that the rows fall into different cache sets.
inline constexpr int64_t kBlockUnits = 512;
inline constexpr int64_t kRowStride = kBlockUnits + 16;

/// Units from one packed panel, or row tile, to the next: off a power of two as well, and the
/// latter an odd number of cache lines, with room for a vector past its end.
constexpr int64_t panel_units(int64_t columns) { return kBlockUnits * columns + 64; }
constexpr int64_t row_tile_units(int64_t rows) {
  return (rows * kRowStride + 16 + 31) / 32 * 32 + 16;
}

using StreamKernel = void (*)(const Stream& stream);

/// The kernels of one instruction set.
struct Kernels {
  int rows = 0;         // of a tile
  int columns = 0;      // of a panel
  int unit = 1;         // elements of k in a unit
  int stream_rows = 0;  // most rows that `stream` takes
  /// Packs lines into row tiles (row_tile_units apart), in the layout that the operand's asks for.
  void (*pack_rows)(const Block& block, void* tiles) = nullptr;
  /// Packs lines into panels (panel_units apart); the last one's missing lines become zeros.
  void (*pack_columns)(const Block& block, void* panels) = nullptr;
  void (*tile)(const Tile& tile) = nullptr;
  StreamKernel stream = nullptr;
};

/// Kernels that multiply floats; null on processors without AVX2 or NEON.
const Kernels* float_kernels();
/// The `stream` of float_kernels(). It is compiled in its own file, because it takes long.
StreamKernel float_stream();
/// Kernels that multiply pairs of bf16, if compiled in; for processors with AVX512_BF16 only.
extern const Kernels* const kPairKernels;
/// Those, where they are faster than floats; otherwise null.
const Kernels* bf16_kernels();
/// Does `steps` times as many multiply-adds of bf16 pairs as it returns, in registers; null where
/// kPairKernels is.
extern int64_t (*const kSpinPairs)(int64_t steps);

}  // namespace mixtral::cpu
