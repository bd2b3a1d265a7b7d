#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

#include "cuda/grouped_drain.cuh"
#include "cuda/grouped_plan.cuh"

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

/// A box of an operand from memory, to this block alone or to all of its cluster.
template <class P, bool shared>
__device__ __forceinline__ void load_box(const CUtensorMap& map, uint64_t* full, uint8_t* to,
                                         int column, int row) {
  if constexpr (shared)
    cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&map, full, (1 << P::cluster) - 1, kCacheHint, to,
                                           column, row);
  else
    cute::SM90_TMA_LOAD_2D::copy(&map, full, kCacheHint, to, column, row);
}

/// Loads a tile's operands, step by step. Of what a cluster shares, each block loads its part, for
/// all.
template <class P, bool share_a, bool share_b>
__device__ __forceinline__ void load_tile(const GroupedArguments& args, typename P::Storage& s,
                                          const GroupedTile& tile, int rank,
                                          Turn<P::stages>& stage) {
  // Boxes of A, and boxes or (forward, where they are higher) halves of B.
  constexpr int parts_b = P::form == Form::forward ? 2 : P::boxes_b;
  constexpr int count_a = kBoxesA / (share_a ? P::cluster : 1);
  constexpr int count_b = parts_b / (share_b ? P::cluster : 1);
  constexpr int part_bytes = P::boxes_b * kBoxBytes / parts_b;
  const int first_a = share_a ? rank * count_a : 0, first_b = share_b ? rank * count_b : 0;
  const int steps = inner_steps<P>(args, tile);
#pragma unroll 1
  for (int step = 0; step < steps; ++step, stage.advance()) {
    const int k = step * kTileK;
    uint64_t* full = &s.full[stage.index];
    Barrier::wait(&s.empty[stage.index], stage.phase ^ 1);
    cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(full, P::stage_bytes);
#pragma unroll
    for (int i = 0; i < count_a; ++i) {
      const int m = tile.m + (first_a + i) * 64;
      uint8_t* to = s.a[stage.index] + (first_a + i) * kBoxBytes;
      if constexpr (P::form == Form::weight)
        load_box<P, share_a>(args.left, full, to, m, tile.begin + k);
      else
        load_box<P, share_a>(args.left, full, to, k, tile.begin + m);
    }
#pragma unroll
    for (int i = 0; i < count_b; ++i) {
      const int part = first_b + i;
      uint8_t* to = s.b[stage.index] + part * part_bytes;
      if constexpr (P::finish == Finish::gate)
        load_box<P, share_b>(args.right, full, to, k, (tile.group * 2 + part) * args.n + tile.n);
      else if constexpr (P::form == Form::forward)
        load_box<P, share_b>(args.right, full, to, k,
                             tile.group * args.n + tile.n + part * (P::tile_n / 2));
      else
        load_box<P, share_b>(args.right, full, to, tile.n + part * 64,
                             (P::form == Form::input ? tile.group * args.k : tile.begin) + k);
    }
  }
}

/// One thread issues all copies, and must do so in less than the 1,000 cycles that a step's
/// multiplication takes. So what is shared is decided once a tile, not once a copy: a copy that is
/// predicated off costs as much as one that is made.
template <class P>
__device__ void load_tiles(const GroupedArguments& args, typename P::Storage& s, int rank) {
  GroupedTiles<P> tiles(args, rank);
  GroupedTile tile;
  Turn<P::stages> stage;
  while (tiles.next(tile)) {
    if constexpr (P::cluster == 1)
      load_tile<P, false, false>(args, s, tile, rank, stage);
    else if (tile.above)
      load_tile<P, false, true>(args, s, tile, rank, stage);
    else
      load_tile<P, true, false>(args, s, tile, rank, stage);
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
    if (warp < kMultipliers) {
      Drain<P>(args, s, warp, thread % 32).run(rank);
    } else if (warp == kMultipliers && cute::elect_one_sync()) {
      // Elected, so the compiler knows that one thread goes on, and needs no loops over a warp's
      // different values in front of the copies.
      load_tiles<P>(args, s, rank);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<208>();
    multiply_tiles<P>(args, s, rank, warpgroup - 1, thread);
  }
  // Until the other block needs this one's memory no longer.
  __syncwarp();
  cute::cluster_arrive();
  cute::cluster_wait();
}

}  // namespace mixtral::cuda
