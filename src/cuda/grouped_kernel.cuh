#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

#include "cuda/device.cuh"
#include "cuda/product.h"

// Grouped bf16 products on Hopper's tensor cores: one persistent kernel whose blocks find their
// tiles from the offsets in device memory. In each block a thread keeps the copy engine busy, two
// warpgroups multiply, and what they have finished is sent to memory by other warps while they
// multiply the next tile.
//
// Rows of all groups lie in one tensor, and so do all groups' weights, so a few tensor maps made on
// the host serve every group: a tile that begins in a group reads what follows it (the next group's
// rows), and only what belongs to the group is stored. Where the rows are the inner dimension (the
// weights' gradient), what follows is cleared in shared memory before it is multiplied.
namespace mixtral::cuda {

using Form = Product::Form;
using Barrier = cutlass::arch::ClusterBarrier;

/// What becomes of a product: it is assigned, or added, or its halves gate and up become SwiGLU's
/// result (and may be kept).
enum class Finish { assign, add, gate };

constexpr int kTileM = 128, kTileK = 64;  // a tile's rows, and the inner step
constexpr int kMultipliers = 2;           // warpgroups that multiply, 64 rows of the tile each
constexpr int kRows = kTileM / kMultipliers;
constexpr int kGroupedThreads = 128 * (1 + kMultipliers);

// Shared memory holds everything in boxes of 64 rows of 128 bytes, swizzled by 16 bytes.
constexpr int kRowBytes = 128, kBoxBytes = 64 * kRowBytes;
constexpr int kPieces = kRowBytes / 16;
constexpr int kBoxesA = kTileM / 64;

/// Columns of a tile, and the blocks (a cluster) that share an operand of theirs.
struct Wide {
  static constexpr int columns = 256, cluster = 2;
};
struct Narrow {
  static constexpr int columns = 64, cluster = 1;
};

template <Form kForm, Finish kFinish, class Tile>
struct GroupedPlan {
  static constexpr Form form = kForm;
  static constexpr Finish finish = kFinish;
  static constexpr int tile_n = Tile::columns, cluster = Tile::cluster;
  static constexpr int boxes_b = tile_n / 64;
  static constexpr int stage_bytes = (kBoxesA + boxes_b) * kBoxBytes;
  /// gate's columns and up's are beside each other in a tile.
  static constexpr int columns = finish == Finish::gate ? tile_n / 2 : tile_n;
  /// Multipliers hand single boxes over, but for gate a whole tile at once, lest they wait for the
  /// warps that compute on it. That leaves room for fewer stages.
  static constexpr int turn_boxes = finish == Finish::gate ? 2 : 1;
  static constexpr int stages = finish == Finish::gate ? 3 : tile_n == 256 ? 4 : 6;
  static constexpr int turns = tile_n / (form == Form::weight ? 32 : 64) / turn_boxes;
  /// Whether what is added to is brought to where the multipliers hand over. Gradients are added to
  /// by the copy engine.
  static constexpr bool reads_sum = finish == Finish::add && form != Form::weight;

  struct Storage {
    alignas(1024) uint8_t a[stages][kBoxesA * kBoxBytes];
    uint8_t b[stages][boxes_b * kBoxBytes];
    uint8_t out[kMultipliers][2][turn_boxes * kBoxBytes];
    uint64_t full[stages], empty[stages];
    uint64_t filled[kMultipliers][2], drained[kMultipliers][2];
  };
  static constexpr int shared_bytes = sizeof(Storage) + 1024;
};

struct GroupedArguments {
  CUtensorMap left, right;  // [rows, columns] of bf16
  CUtensorMap result;       // [rows, halves, columns] of bf16, or [groups, rows, columns] of f32
  CUtensorMap hidden;       // gate: [rows, 1, columns] of bf16
  const int* offsets;
  int groups;
  int m, n, k;  // of a group, where they are not its rows
  float scale;
  Bf16* to;  // the result's memory, for a group's last rows; null when gate and up aren't kept
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

/// The tiles of one block, in order. Two tiles above each other move the fewest bytes; a group's
/// last one is done beside its neighbour. Along M first within a chunk, so that a group's weights
/// are read once from memory and its rows from the second-level cache.
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
    tile_.begin = args_.offsets[group];
    tile_.rows = args_.offsets[group + 1] - tile_.begin;
    const int tall = ((P::form == Form::weight ? args_.m : tile_.rows) + kTileM - 1) / kTileM;
    stacks_ = tall / P::cluster;
    units_ = stacks_ * wide_ + tall % P::cluster * ((wide_ + P::cluster - 1) / P::cluster);
  }

  const GroupedArguments& args_;
  GroupedTile tile_{};
  int rank_, next_, wide_;
  int first_ = 0, units_ = 0;  // the group's first unit of a cluster's work, and how many it has
  int stacks_ = 0;
};

template <class P>
__device__ int inner_steps(const GroupedArguments& args, const GroupedTile& tile) {
  return ((P::form == Form::weight ? tile.rows : args.k) + kTileK - 1) / kTileK;
}

/// Rows of a multiplier's half of the tile that have a result; 0 when it has nothing to hand over.
template <class P>
__device__ int rows_left(const GroupedArguments& args, const GroupedTile& tile, int multiplier) {
  if (tile.n >= args.n) return 0;
  if (P::form == Form::weight && P::finish == Finish::add && tile.rows == 0) return 0;
  const int rows = P::form == Form::weight ? args.m : tile.rows;
  return min(kRows, max(0, rows - tile.m - multiplier * kRows));
}

/// A place in a ring of `size`, and the parity of the round.
template <int size>
struct Turn {
  int index = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++index == size) index = 0, phase ^= 1;
  }
};

constexpr auto kCacheHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

/// One thread issues all copies, and must do so in less than the 1,000 cycles that a step's
/// multiplication takes. After a change look at the machine code: copies that are not to be made
/// must be jumped over (branches around UTMALDG), not predicated off, which costs as much as making
/// them: dW took a third longer.
template <class P>
__device__ void load_tiles(const GroupedArguments& args, typename P::Storage& s, int rank) {
  GroupedTiles<P> tiles(args, rank);
  GroupedTile tile;
  Turn<P::stages> stage;
  while (tiles.next(tile)) {
    const bool share_b = P::cluster > 1 && tile.above, share_a = P::cluster > 1 && !tile.above;
    const int steps = inner_steps<P>(args, tile);
    for (int step = 0; step < steps; ++step, stage.advance()) {
      const int k = step * kTileK;
      Barrier::wait(&s.empty[stage.index], stage.phase ^ 1);
      uint64_t* full = &s.full[stage.index];
      cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(full, P::stage_bytes);
      // Of what they share, each block of a cluster loads half, for both.
      const auto load = [&](const CUtensorMap& map, uint8_t* to, int column, int row, bool shared,
                            int half) {
        if (!shared)
          cute::SM90_TMA_LOAD_2D::copy(&map, full, kCacheHint, to, column, row);
        else if (half == rank)
          cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&map, full, (1 << P::cluster) - 1, kCacheHint, to,
                                                 column, row);
      };
#pragma unroll
      for (int box = 0; box < kBoxesA; ++box) {
        const int m = tile.m + box * 64;
        uint8_t* to = s.a[stage.index] + box * kBoxBytes;
        if constexpr (P::form == Form::weight)
          load(args.left, to, m, tile.begin + k, share_a, box);
        else
          load(args.left, to, k, tile.begin + m, share_a, box);
      }
      if constexpr (P::form == Form::forward) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = P::finish == Finish::gate
                              ? (tile.group * 2 + half) * args.n + tile.n
                              : tile.group * args.n + tile.n + half * (P::tile_n / 2);
          load(args.right, s.b[stage.index] + half * (P::boxes_b * kBoxBytes / 2), k, row, share_b,
               half);
        }
      } else {
        const int row = (P::form == Form::input ? tile.group * args.k : tile.begin) + k;
#pragma unroll
        for (int box = 0; box < P::boxes_b; ++box)
          load(args.right, s.b[stage.index] + box * kBoxBytes, tile.n + box * 64, row, share_b,
               box * 2 / P::boxes_b);
      }
    }
  }
}

/// A wgmma operand: rows of 128 bytes with a swizzle of 128 bytes (1 in bits 62-63); the address,
/// and the offsets between boxes and between groups of 8 rows, in units of 16 bytes.
__device__ inline uint64_t operand(const void* shared) {
  const uint64_t address = cute::cast_smem_ptr_to_uint(shared);
  return (address & 0x3FFFF) >> 4 | uint64_t{kBoxBytes >> 4} << 16 |
         uint64_t{8 * kRowBytes >> 4} << 32 | uint64_t{1} << 62;
}

template <class Mma, int n, size_t... i>
__device__ __forceinline__ void multiply_add(uint64_t a, uint64_t b, float (&d)[n],
                                             std::index_sequence<i...>) {
  Mma::fma(a, b, d[i]..., cute::SM90::GMMA::ScaleOut::One);
}

/// Keeps the compiler from moving accesses of the accumulators past this point.
template <int n>
__device__ __forceinline__ void keep_in_order(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) cute::warpgroup_fence_operand(d[i]);
}

/// Two bf16 in a word, the first in its lower half.
__device__ inline uint32_t pack(float a, float b) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(both);
}
__device__ inline float2 unpack(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}

/// Four 8 x 8 matrices of bf16, of which lane l gives the address of row l % 8 of matrix l / 8, and
/// holds columns 2 (l % 4) and the next of row l / 4 of each.
__device__ inline void store_matrices(uint8_t* to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   cute::cast_smem_ptr_to_uint(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
__device__ inline void load_matrices(const uint8_t* from, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(cute::cast_smem_ptr_to_uint(from))
               : "memory");
}

/// Where 16 bytes of a row are in a box.
__device__ inline int swizzled(int row, int piece) {
  return row * kRowBytes + (piece ^ (row % 8)) * 16;
}
__device__ inline uint4& vector_at(uint8_t* shared) { return *reinterpret_cast<uint4*>(shared); }

/// Clears the rows from `valid` on of a stage, which belong to the next group.
template <class P>
__device__ void clear_tail(typename P::Storage& s, int stage, int valid, int multiplier,
                           int thread) {
  const auto clear = [&](uint8_t* box) {
    for (int at = valid * kRowBytes + thread * 16; at < kBoxBytes; at += 128 * 16)
      vector_at(box + at) = uint4{};
  };
  clear(s.a[stage] + multiplier * kBoxBytes);
  for (int box = multiplier; box < P::boxes_b; box += kMultipliers)
    clear(s.b[stage] + box * kBoxBytes);
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::NamedBarrier::sync(128 * kMultipliers, 0);
}

/// Puts a turn's part of the accumulators where it is sent to memory from, in boxes of 64 bf16 or
/// 32 f32 a row. Accumulators 4j + 2h and the next are columns 8j + 2 (lane % 4) and the next of
/// the warp's row lane / 4 + 8h.
template <class P, int turn>
__device__ __forceinline__ void hand_over(const float (&d)[P::tile_n / 2], float scale, uint8_t* to,
                                          int thread) {
  const int lane = thread % 32, warp = thread / 32;
  if constexpr (P::form == Form::weight) {
    // Neighbouring rows' pieces share banks: odd rows store the other half of the box meanwhile.
    const bool odd = lane / 4 % 2 != 0;
#pragma unroll
    for (int i = 0; i < 2 * P::turn_boxes; ++i) {
      const int first = turn * P::turn_boxes * 4 + i / 2 * 4 + i % 2;  // and first + 2
      const int piece = i % 2 * 2 + lane % 4 / 2;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp * 16 + lane / 4 + 8 * h;
        const float2 lower{d[4 * first + 2 * h] * scale, d[4 * first + 2 * h + 1] * scale};
        const float2 upper{d[4 * first + 8 + 2 * h] * scale, d[4 * first + 9 + 2 * h] * scale};
        uint8_t* box = to + i / 2 * kBoxBytes + lane % 2 * 8;
        *reinterpret_cast<float2*>(box + swizzled(row, piece + (odd ? 4 : 0))) =
            odd ? upper : lower;
        *reinterpret_cast<float2*>(box + swizzled(row, piece + (odd ? 0 : 4))) =
            odd ? lower : upper;
      }
    }
  } else {
    const int row = warp * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < P::turn_boxes * 8; i += 2) {
      uint8_t* at = to + i / 8 * kBoxBytes + swizzled(row, i % 8 + lane / 16);
      uint32_t words[4] = {};
      if constexpr (P::reads_sum) load_matrices(at, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int first = 4 * (turn * P::turn_boxes * 8 + i) + 2 * w;
        float2 sum{d[first] * scale, d[first + 1] * scale};
        if constexpr (P::reads_sum) {
          const float2 before = unpack(words[w]);
          sum.x += before.x, sum.y += before.y;
        }
        words[w] = pack(sum.x, sum.y);
      }
      store_matrices(at, words);
    }
  }
}

template <class Work, int... turn>
__device__ __forceinline__ void each_turn(const Work& work, std::integer_sequence<int, turn...>) {
  (work(std::integral_constant<int, turn>{}), ...);
}

template <class P>
__device__ __forceinline__ void multiply_tiles(const GroupedArguments& args, typename P::Storage& s,
                                               int rank, int multiplier, int thread) {
  using Major = cute::SM90::GMMA::Major;
  constexpr Major major_a = P::form == Form::weight ? Major::MN : Major::K;
  constexpr Major major_b = P::form == Form::forward ? Major::K : Major::MN;
  using Mma = std::conditional_t<P::tile_n == 256,
                                 cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<major_a, major_b>,
                                 cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<major_a, major_b>>;
  constexpr int count = P::tile_n / 2;
  // Sixteen steps inwards: 32 bytes where the inner dimension is contiguous, 16 rows else.
  constexpr int next_a = (major_a == Major::K ? 32 : 16 * kRowBytes) / 16;
  constexpr int next_b = (major_b == Major::K ? 32 : 16 * kRowBytes) / 16;
  const uint64_t a0 = operand(s.a[0] + multiplier * kBoxBytes);
  const uint64_t b0 = operand(s.b[0]);
  GroupedTiles<P> tiles(args, rank);
  GroupedTile tile;
  Turn<P::stages> stage;
  Turn<2> out;
  const auto release = [&](int which) {
    if (thread % 32 < P::cluster) Barrier::arrive(&s.empty[which], thread % 32, 1);
  };
  float d[count];
  while (tiles.next(tile)) {
    const int steps = inner_steps<P>(args, tile);
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] = 0;
    int before = 0;
    for (int step = 0; step < steps; ++step, stage.advance()) {
      Barrier::wait(&s.full[stage.index], stage.phase);
      if constexpr (P::form == Form::weight)
        if (step + 1 == steps && tile.rows % kTileK != 0)
          clear_tail<P>(s, stage.index, tile.rows % kTileK, multiplier, thread);
      keep_in_order(d);
      cute::warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < kTileK / 16; ++k)
        multiply_add<Mma>(a0 + stage.index * (kBoxesA * kBoxBytes / 16) + k * next_a,
                          b0 + stage.index * (P::boxes_b * kBoxBytes / 16) + k * next_b, d,
                          std::make_index_sequence<count>{});
      cute::warpgroup_commit_batch();
      keep_in_order(d);
      cute::warpgroup_wait<1>();
      if (step > 0) release(before);
      before = stage.index;
    }
    cute::warpgroup_wait<0>();
    keep_in_order(d);
    if (steps > 0) release(before);
    if (rows_left<P>(args, tile, multiplier) == 0) continue;
    const auto work = [&](auto turn) {
      // The first round needs no draining, but what is added to must have come.
      Barrier::wait(&s.drained[multiplier][out.index], out.phase ^ (P::reads_sum ? 0 : 1));
      hand_over<P, turn()>(d, args.scale, s.out[multiplier][out.index], thread);
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (thread % 32 == 0) Barrier::arrive(&s.filled[multiplier][out.index]);
      out.advance();
    };
    each_turn(work, std::make_integer_sequence<int, P::turns>{});
  }
}

/// The warp that takes what one multiplier hands over to memory.
template <class P>
class Drain {
 public:
  __device__ Drain(const GroupedArguments& args, typename P::Storage& s, int multiplier, int lane)
      : args_(args), s_(s), multiplier_(multiplier), lane_(lane) {}

  __device__ void run(int rank) {
    GroupedTiles<P> tiles(args_, rank);
    Sums sums{*this, GroupedTiles<P>(args_, rank)};
    if constexpr (P::reads_sum)
      for (int index = 0; index < 2; ++index) sums.fetch(index);
    for (Mine tile = next_of(tiles); tile.rows > 0; tile = next_of(tiles)) {
      if constexpr (P::finish == Finish::gate)
        gate(tile);
      else
        for (int turn = 0; turn < P::turns; ++turn) send_turn(tile, turn, sums);
    }
    if (lane_ == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }

 private:
  /// This multiplier's part of a tile. No rows: there are no more tiles.
  struct Mine {
    int group, m, n, rows;
    int64_t row;  // its first, of all groups' rows
  };
  /// Brings boxes of what is added to, in the order in which they are handed over; `drained` tells
  /// when one has come.
  struct Sums {
    Drain& drain;
    GroupedTiles<P> tiles;
    int turn = P::turns;
    Mine tile{};

    __device__ void fetch(int index) {
      if (turn == P::turns) turn = 0, tile = drain.next_of(tiles);
      if (tile.rows == 0) return;
      if (drain.lane_ == 0) {
        uint64_t* come = &drain.s_.drained[drain.multiplier_][index];
        cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(come, kBoxBytes);
        cute::SM90_TMA_LOAD_3D::copy(&drain.args_.result, come, kCacheHint,
                                     drain.s_.out[drain.multiplier_][index], tile.n + turn * 64, 0,
                                     static_cast<int>(tile.row));
      }
      ++turn;
    }
  };

  __device__ Mine next_of(GroupedTiles<P>& tiles) const {
    GroupedTile tile;
    while (tiles.next(tile)) {
      const int rows = rows_left<P>(args_, tile, multiplier_);
      const int m = tile.m + multiplier_ * kRows;
      if (rows > 0) return {tile.group, m, tile.n, rows, int64_t{tile.begin} + m};
    }
    return {};
  }

  __device__ void send_turn(const Mine& tile, int turn, Sums& sums) {
    wait_filled();
    if constexpr (P::form == Form::weight)
      send_gradient(tile, turn);
    else
      send(args_.result, place(), tile, tile.n + turn * 64, 0, args_.to, args_.to_stride);
    wait_read();
    if constexpr (P::reads_sum)
      sums.fetch(out_.index);
    else
      release(out_.index);
    out_.advance();
  }

  __device__ uint8_t* place() const { return s_.out[multiplier_][out_.index]; }
  __device__ void wait_filled() const {
    Barrier::wait(&s_.filled[multiplier_][out_.index], out_.phase);
  }
  /// Until all lanes and the copy engine have read what they were to send.
  __device__ void wait_read() const {
    if (lane_ == 0) cute::tma_store_wait<0>();
    __syncwarp();
  }
  __device__ void release(int index) const {
    if (lane_ == 0) Barrier::arrive(&s_.drained[multiplier_][index]);
  }

  /// A box of bf16 to memory: by the copy engine, or where the group has fewer rows, by the lanes.
  __device__ void send(const CUtensorMap& map, uint8_t* box, const Mine& tile, int column, int half,
                       Bf16* to, int64_t stride) const {
    if (tile.rows == kRows) {
      if (lane_ == 0) {
        cute::SM90_TMA_STORE_3D::copy(&map, box, column, half, static_cast<int>(tile.row));
        cute::tma_store_arrive();
      }
      return;
    }
    to += tile.row * stride + half * args_.n + column;
    for (int i = lane_; i < tile.rows * kPieces; i += 32) {
      const int row = i / kPieces, piece = i % kPieces;
      if (column + piece * 8 < args_.n)
        *reinterpret_cast<uint4*>(to + row * stride + piece * 8) =
            vector_at(box + swizzled(row, piece));
    }
  }

  /// Each element is added to once in a launch, so the order of the additions doesn't matter.
  __device__ void send_gradient(const Mine& tile, int turn) const {
    if (lane_ != 0) return;
    const int column = tile.n + turn * 32;
    if constexpr (P::finish == Finish::add)
      cute::SM90_TMA_REDUCE_ADD_3D::copy(&args_.result, place(), column, tile.m, tile.group);
    else
      cute::SM90_TMA_STORE_3D::copy(&args_.result, place(), column, tile.m, tile.group);
    cute::tma_store_arrive();
  }

  /// gate comes with the first turn, up with the second; h takes gate's place. From the rounded
  /// gate and up, which is what the backward pass will read.
  __device__ void gate(const Mine& tile) {
    const auto weight_of = [&](int row) {
      return row < tile.rows ? args_.weights[args_.source[tile.row + row]] : 0.0f;
    };
    const float weights[2] = {weight_of(lane_), weight_of(32 + lane_)};
    uint8_t* const places[2] = {s_.out[multiplier_][0], s_.out[multiplier_][1]};
    for (int half = 0; half < 2; ++half) {
      wait_filled();
      out_.advance();
      for (int box = 0; args_.to && box < 2; ++box)
        send(args_.result, places[half] + box * kBoxBytes, tile, tile.n + box * 64, half, args_.to,
             args_.to_stride);
    }
    wait_read();
    for (int box = 0; box < 2; ++box) {
      uint8_t* gates = places[0] + box * kBoxBytes;
      uint8_t* ups = places[1] + box * kBoxBytes;
#pragma unroll 2
      for (int i = 0; i < kRows / 4; ++i) {
        const int row = i * 4 + lane_ / kPieces;
        const float w = __shfl_sync(kAllLanes, weights[i / 8], row % 32);
        const int at = swizzled(row, lane_ % kPieces);
        const uint4 gate = vector_at(gates + at), up = vector_at(ups + at);
        vector_at(gates + at) = uint4{hidden(gate.x, up.x, w), hidden(gate.y, up.y, w),
                                      hidden(gate.z, up.z, w), hidden(gate.w, up.w, w)};
      }
    }
    cutlass::arch::fence_view_async_shared();
    __syncwarp();
    for (int box = 0; box < 2; ++box)
      send(args_.hidden, places[0] + box * kBoxBytes, tile, tile.n + box * 64, 0, args_.hidden_to,
           args_.n);
    wait_read();
    release(0);
    release(1);
  }

  static __device__ uint32_t hidden(uint32_t gates, uint32_t ups, float w) {
    const float2 gate = unpack(gates), up = unpack(ups);
    return pack(swiglu<Bf16>(gate.x, up.x, w), swiglu<Bf16>(gate.y, up.y, w));
  }

  const GroupedArguments& args_;
  typename P::Storage& s_;
  int multiplier_, lane_;
  Turn<2> out_;
};

template <class P>
__global__ void __cluster_dims__(P::cluster, 1, 1) __launch_bounds__(kGroupedThreads, 1)
    grouped_kernel(const __grid_constant__ GroupedArguments args) {
  extern __shared__ uint8_t shared[];
  auto& s = *reinterpret_cast<typename P::Storage*>((reinterpret_cast<uintptr_t>(shared) + 1023) &
                                                    ~uintptr_t{1023});
  const int rank = static_cast<int>(cute::block_rank_in_cluster());
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < P::stages; ++i) {
      Barrier::init(&s.full[i], 1);
      Barrier::init(&s.empty[i], P::cluster * kMultipliers * 4);
    }
    for (int i = 0; i < kMultipliers; ++i)
      for (int turn = 0; turn < 2; ++turn) {
        Barrier::init(&s.filled[i][turn], 4);
        Barrier::init(&s.drained[i][turn], 1);
      }
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_arrive_relaxed();
  cute::cluster_wait();
  __syncthreads();
  // 504 registers for three threads, as before: 168 each.
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<88>();
    const int warp = thread / 32;
    if (warp < kMultipliers)
      Drain<P>(args, s, warp, thread % 32).run(rank);
    else if (warp == kMultipliers && thread % 32 == 0)
      load_tiles<P>(args, s, rank);
  } else {
    cutlass::arch::warpgroup_reg_alloc<208>();
    multiply_tiles<P>(args, s, rank, warpgroup - 1, thread);
  }
  // Until the other block needs this one's memory no longer.
  cute::cluster_arrive();
  cute::cluster_wait();
}

}  // namespace mixtral::cuda
