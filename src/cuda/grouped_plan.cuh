#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/device.cuh"
#include "cuda/product.h"
#include "cuda/wgmma.cuh"

// What producer, consumers and epilogue of the grouped kernel (grouped_kernel.cuh) share: shapes,
// shared memory, arguments, and the order of the tiles.
namespace mixtral::cuda {

using Form = Product::Form;
using Barrier = cutlass::arch::ClusterBarrier;

/// What the epilogue does: assign the product, add it, or compute SwiGLU of its halves gate and up
/// (which may be kept, too).
enum class Finish { assign, add, gate };

constexpr int kTileM = 128, kTileK = 64;  // a tile's rows, and the inner step
constexpr int kConsumers = 2;             // consumer warpgroups, 64 rows of the tile each
constexpr int kRows = kTileM / kConsumers;
constexpr int kGroupedThreads = 128 * (1 + kConsumers);

// Everything in shared memory is in boxes of 64 rows (wgmma.cuh).
constexpr int kBoxBytes = 64 * kRowBytes;
constexpr int kBoxesA = kTileM / 64;

/// The columns of a tile, and how many blocks form a cluster, which shares an operand. `scaled`:
/// operands are e4m3 instead of bf16, and every kScaleBlock inner elements of a row of the weight
/// share a scale. (Forward products alone.)
struct Wide {
  static constexpr int columns = 256, cluster = 2;
  static constexpr bool scaled = false;
};
struct Narrow {
  static constexpr int columns = 64, cluster = 1;
  static constexpr bool scaled = false;
};
struct Scaled {
  static constexpr int columns = 128, cluster = 2;
  static constexpr bool scaled = true;
};

/// An inner step of e4m3, which is a block of the weight's format. TMA copies 16 bytes at least, so
/// the scales of four blocks arrive, from a multiple of four on.
constexpr int kScaleBlock = 128, kScalesOfRow = 4;
constexpr int kScaleRowBytes = kScalesOfRow * static_cast<int>(sizeof(float));

template <Form kForm, Finish kFinish, class Tile>
struct GroupedPlan {
  static constexpr Form form = kForm;
  static constexpr Finish finish = kFinish;
  static constexpr int tile_n = Tile::columns, cluster = Tile::cluster;
  static constexpr bool scaled = Tile::scaled;
  static constexpr int inner = scaled ? kScaleBlock : kTileK;  // elements of an inner step
  static constexpr int boxes_b = tile_n / 64;
  static constexpr int scale_bytes = scaled ? tile_n * kScaleRowBytes : 0;  // of a stage
  static constexpr int stage_bytes = (kBoxesA + boxes_b) * kBoxBytes + scale_bytes;
  /// Columns of the result: a tile has as many of gate and of up, side by side.
  static constexpr int columns = finish == Finish::gate ? tile_n / 2 : tile_n;
  /// The epilogue takes a box at a time. For gate it takes those of half a tile, so that the
  /// consumers write a whole tile without waiting for its computation; where these are two, that
  /// leaves room for fewer stages.
  static constexpr int subtile_boxes = finish == Finish::gate ? tile_n / 128 : 1;
  static constexpr int stages = scaled ? 5 : finish == Finish::gate ? 3 : tile_n == 256 ? 4 : 6;
  static constexpr int subtiles = tile_n / (form == Form::weight ? 32 : 64) / subtile_boxes;
  /// Whether the result's old values are loaded into the epilogue's buffers, for the consumers to
  /// add to. (Gradients need not be: TMA adds to them.)
  static constexpr bool reads_sum = finish == Finish::add && form != Form::weight;

  struct Storage {
    alignas(1024) uint8_t a[stages][kBoxesA * kBoxBytes];
    uint8_t b[stages][boxes_b * kBoxBytes];
    uint8_t out[kConsumers][2][subtile_boxes * kBoxBytes];
    alignas(128) uint8_t scales[stages][scaled ? scale_bytes : 16];
    uint64_t full[stages], empty[stages];
    uint64_t out_full[kConsumers][2], out_empty[kConsumers][2];
  };
  static constexpr int shared_bytes = sizeof(Storage) + 1024;
};

struct GroupedArguments {
  CUtensorMap left, right;  // [rows, columns] of bf16, or of e4m3
  CUtensorMap result;       // [rows, halves, columns] of bf16, or [groups, rows, columns] of f32
  CUtensorMap hidden;       // gate: [rows, 1, columns] of bf16
  const int* offsets;       // [groups + 1]; without, the rows are divided evenly
  int groups, all_rows;
  int m, n, k;  // of a group, where they are not its rows
  float scale;
  // scaled only:
  CUtensorMap scales;       // [rows of the weight, blocks] of f32
  const float* row_scales;  // of the left operand's rows
  Bf16* to;  // the result's memory, for a group's last rows; null when gate and up are not kept
  int64_t to_stride;
  // gate only:
  Bf16* hidden_to;       // [rows, n]
  const float* weights;  // of the assignments
  const int* source;     // [rows]
};

struct GroupedTile {
  int group, begin, rows;  // the group's
  int m, n;                // the tile's first row and column in its group
  bool above;  // the cluster's tiles lie above each other and share B, or side by side and share A
};

/// The tiles of one block, in order. A cluster's two tiles are above each other, which moves the
/// fewest bytes, except that a group's last row of tiles is taken side by side. Within a chunk the
/// order is along M first, so that a group's weights are read from memory once and its rows come
/// from the second-level cache.
template <class P>
class GroupedTiles {
 public:
  __device__ GroupedTiles(const GroupedArguments& args, int rank)
      : args_(args),
        rank_(rank),
        next_(static_cast<int>(blockIdx.x) / P::cluster),
        wide_((args.n + P::columns - 1) / P::columns) {
    enter(0);
  }

  __device__ bool next(GroupedTile& tile) {
    while (next_ >= first_ + units_) {
      if (tile_.group + 1 == args_.groups) return false;
      first_ += units_;
      enter(tile_.group + 1);
    }
    const int unit = next_ - first_;
    next_ += static_cast<int>(gridDim.x) / P::cluster;
    tile_.above = unit < stacks_ * wide_;
    if (tile_.above) {
      const int chunk = unit / (kChunk * wide_);
      const int height = min(kChunk, stacks_ - chunk * kChunk);
      const int within = unit - chunk * kChunk * wide_;
      tile_.m = ((chunk * kChunk + within % height) * P::cluster + rank_) * kTileM;
      tile_.n = within / height * P::columns;
    } else {
      tile_.m = stacks_ * P::cluster * kTileM;
      tile_.n = ((unit - stacks_ * wide_) * P::cluster + rank_) * P::columns;
    }
    tile = tile_;
    return true;
  }

 private:
  static constexpr int kChunk = 8;  // stacks whose columns are all done before the next rows

  __device__ void enter(int group) {
    tile_.group = group;
    tile_.begin = begin_of(group);
    tile_.rows = begin_of(group + 1) - tile_.begin;
    const int tall = ((P::form == Form::weight ? args_.m : tile_.rows) + kTileM - 1) / kTileM;
    stacks_ = tall / P::cluster;
    units_ = stacks_ * wide_ + tall % P::cluster * ((wide_ + P::cluster - 1) / P::cluster);
  }

  __device__ int begin_of(int group) const {
    return args_.offsets ? args_.offsets[group]
                         : static_cast<int>(int64_t{args_.all_rows} * group / args_.groups);
  }

  const GroupedArguments& args_;
  GroupedTile tile_{};
  int rank_, next_, wide_;
  int first_ = 0, units_ = 0;  // the group's first unit of a cluster's work, and how many it has
  int stacks_ = 0;
};

template <class P>
__device__ int inner_steps(const GroupedArguments& args, const GroupedTile& tile) {
  return ((P::form == Form::weight ? tile.rows : args.k) + P::inner - 1) / P::inner;
}

/// Rows of a consumer's half of the tile that have a result; 0 when there is nothing to store.
template <class P>
__device__ int rows_left(const GroupedArguments& args, const GroupedTile& tile, int consumer) {
  if (tile.n >= args.n) return 0;
  if (P::form == Form::weight && P::finish == Finish::add && tile.rows == 0) return 0;
  const int rows = P::form == Form::weight ? args.m : tile.rows;
  return min(kRows, max(0, rows - tile.m - consumer * kRows));
}

constexpr auto kCacheHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

/// The reverse of pack_bf16.
__device__ inline float2 unpack_bf16(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}

/// Stores four 8 x 8 matrices of bf16. Lane l gives the address of row l % 8 of matrix l / 8, and
/// holds columns 2 (l % 4) and the next one of row l / 4 of each matrix.
__device__ inline void store_matrices(uint8_t* to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   cute::cast_smem_ptr_to_uint(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
/// The same with each matrix transposed: the lane's are of column l % 8.
__device__ inline void store_matrices_transposed(uint8_t* to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   cute::cast_smem_ptr_to_uint(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
/// Loads them again, after whatever was stored before.
__device__ inline void reload_matrices(uint32_t (&words)[4], const uint8_t* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(cute::cast_smem_ptr_to_uint(from))
               : "memory");
}

__device__ inline uint4& vector_at(uint8_t* shared) { return *reinterpret_cast<uint4*>(shared); }

}  // namespace mixtral::cuda
