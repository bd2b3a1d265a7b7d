#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <type_traits>
#include <utility>

#include "cuda/grouped_epilogue.cuh"
#include "cuda/grouped_plan.cuh"

// Grouped products of bf16 or e4m3 on Hopper's tensor cores: one persistent, warp-specialized
// kernel whose blocks find their tiles from the offsets in device memory. In each block one
// producer thread loads operands by TMA into a ring of pipeline stages; two consumer warpgroups
// multiply them by wgmma; and two epilogue warps store the results while the consumers multiply the
// next tile.
//
// The rows of all groups are one tensor, and so are the weights of all groups, so a few tensor maps
// made on the host serve every group. A tile at the end of a group also reads rows of the next
// group, but only the group's own results are stored. In the weights' gradient the rows are the
// inner dimension, so there the next group's rows are cleared in shared memory before they are
// multiplied.
namespace mixtral::cuda {

/// Loads a box of an operand by TMA, for this block alone or for all blocks of its cluster.
template <class P, bool shared>
__device__ __forceinline__ void load_box(const CUtensorMap& map, uint64_t* full, uint8_t* to,
                                         int column, int row) {
  if constexpr (shared)
    cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&map, full, (1 << P::cluster) - 1, kCacheHint, to,
                                           column, row);
  else
    cute::SM90_TMA_LOAD_2D::copy(&map, full, kCacheHint, to, column, row);
}

/// Loads a tile's operands, one pipeline stage after another. Each block of a cluster loads its
/// part of the operand that the cluster shares, for all of them.
template <class P, bool share_a, bool share_b>
__device__ __forceinline__ void load_tile(const GroupedArguments& args, typename P::Storage& s,
                                          const GroupedTile& tile, int rank,
                                          PipelineState<P::stages>& stage) {
  // A is loaded in boxes of 64 rows. B too, except in forward products: there in two halves.
  constexpr int parts_b = P::form == Form::forward ? 2 : P::boxes_b;
  constexpr int count_a = kBoxesA / (share_a ? P::cluster : 1);
  constexpr int count_b = parts_b / (share_b ? P::cluster : 1);
  constexpr int part_bytes = P::boxes_b * kBoxBytes / parts_b;
  const int first_a = share_a ? rank * count_a : 0, first_b = share_b ? rank * count_b : 0;
  const int steps = inner_steps<P>(args, tile);
#pragma unroll 1
  for (int step = 0; step < steps; ++step, stage.advance()) {
    const int k = step * P::inner;
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
      if constexpr (P::form == Form::forward) {
        const int row = P::finish == Finish::gate
                            ? (tile.group * 2 + part) * args.n + tile.n
                            : tile.group * args.n + tile.n + part * (P::tile_n / 2);
        load_box<P, share_b>(args.right, full, to, k, row);
        if constexpr (P::scaled)
          load_box<P, share_b>(args.scales, full,
                               s.scales[stage.index] + part * (P::scale_bytes / 2),
                               step / kScalesOfRow * kScalesOfRow, row);
      } else {
        load_box<P, share_b>(args.right, full, to, tile.n + part * 64,
                             (P::form == Form::input ? tile.group * args.k : tile.begin) + k);
      }
    }
  }
}

/// The producer. One thread issues all loads of a stage, and must do so in less than the 1,000
/// cycles that multiplying a stage takes. So which operand is shared is decided once a tile and not
/// once a load: a load that is predicated off costs as much as one that is made.
template <class P>
__device__ void load_tiles(const GroupedArguments& args, typename P::Storage& s, int rank) {
  GroupedTiles<P> tiles(args, rank);
  GroupedTile tile;
  PipelineState<P::stages> stage;
  while (tiles.next(tile)) {
    if constexpr (P::cluster == 1)
      load_tile<P, false, false>(args, s, tile, rank, stage);
    else if (tile.above)
      load_tile<P, false, true>(args, s, tile, rank, stage);
    else
      load_tile<P, true, false>(args, s, tile, rank, stage);
  }
}

/// Clears the rows of a stage from `valid` on: they belong to the next group.
template <class P>
__device__ void clear_tail(typename P::Storage& s, int stage, int valid, int consumer, int thread) {
  const auto clear = [&](uint8_t* box) {
    for (int at = valid * kRowBytes + thread * 16; at < kBoxBytes; at += 128 * 16)
      vector_at(box + at) = uint4{};
  };
  clear(s.a[stage] + consumer * kBoxBytes);
  for (int box = consumer; box < P::boxes_b; box += kConsumers) clear(s.b[stage] + box * kBoxBytes);
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::NamedBarrier::sync(128 * kConsumers, 0);
}

/// Writes a subtile of the accumulators to the epilogue's buffer, in boxes of 64 bf16 or 32 f32 a
/// row. Accumulators 4j + 2h and 4j + 2h + 1 are columns 8j + 2 (lane % 4) and the next one, in the
/// warp's row lane / 4 + 8h.
template <class P, int subtile>
__device__ __forceinline__ void store_accumulators(const float (&d)[P::tile_n / 2], float scale,
                                                   uint8_t* to, int thread) {
  const int lane = thread % 32, warp = thread / 32;
  if constexpr (P::form == Form::weight) {
    // The same pieces of neighbouring rows share banks, so odd rows store the two halves of the box
    // in the other order.
    const bool odd = lane / 4 % 2 != 0;
#pragma unroll
    for (int i = 0; i < 2 * P::subtile_boxes; ++i) {
      const int first = subtile * P::subtile_boxes * 4 + i / 2 * 4 + i % 2;  // and first + 2
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
    for (int i = 0; i < P::subtile_boxes * 8; i += 2) {
      uint8_t* at = to + i / 8 * kBoxBytes + swizzled(row, i % 8 + lane / 16);
      uint32_t words[4] = {};
      if constexpr (P::reads_sum) reload_matrices(words, at);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int first = 4 * (subtile * P::subtile_boxes * 8 + i) + 2 * w;
        float2 sum{d[first] * scale, d[first + 1] * scale};
        if constexpr (P::reads_sum) {
          const float2 before = unpack_bf16(words[w]);
          sum.x += before.x, sum.y += before.y;
        }
        words[w] = pack_bf16(sum.x, sum.y);
      }
      store_matrices(at, words);
    }
  }
}

template <class Work, int... subtile>
__device__ __forceinline__ void each_subtile(const Work& work,
                                             std::integer_sequence<int, subtile...>) {
  (work(std::integral_constant<int, subtile>{}), ...);
}

/// Sums a tile of e4m3, transposed: the weight's rows are those of the accumulators, so that a
/// thread needs two scales a step. Tensor cores sum such products in fewer bits than f32 has, so
/// each inner step's sum is taken alone, multiplied by the scales of the weight's blocks, and added
/// in f32. Meanwhile the tensor cores compute the next step's, in other registers.
template <class P, int count, class Release>
__device__ __forceinline__ void sum_scaled(typename P::Storage& s, PipelineState<P::stages>& stage,
                                           int steps, int consumer, int thread, float (&d)[count],
                                           const Release& release) {
  using Mma = cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<>;
  using cute::SM90::GMMA::ScaleOut;
  static_assert(P::tile_n == 128 && count == 64);
  constexpr int kParts = kRowBytes / 32;  // of a step: 32 inner elements each
  const uint64_t weight = operand(s.b[0] + consumer * kBoxBytes, kBoxBytes);
  const uint64_t x = operand(s.a[0], kBoxBytes);
  const int row = consumer * kRows + thread / 32 * 16 + thread % 32 / 4;  // and 8 more
  struct Step {
    float part[count], scales[2];
    int stage;
  };
  // `step`: of those whose scales arrive together.
  const auto start = [&](Step& to, int step) {
    Barrier::wait(&s.full[stage.index], stage.phase);
    keep_in_order(to.part);
    cute::warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < kParts; ++k)
      multiply_add<Mma>(weight + stage.index * (P::boxes_b * kBoxBytes / 16) + k * 2,
                        x + stage.index * (kBoxesA * kBoxBytes / 16) + k * 2, to.part,
                        std::make_index_sequence<count>{}, k == 0 ? ScaleOut::Zero : ScaleOut::One);
    cute::warpgroup_commit_batch();
    // Loaded by volatile instructions: they must stay in front of the stage's release.
    const uint32_t from = cute::cast_smem_ptr_to_uint(s.scales[stage.index]) +
                          static_cast<uint32_t>(row * kScaleRowBytes + step * 4);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      asm volatile("ld.shared.f32 %0, [%1];"
                   : "=f"(to.scales[h])
                   : "r"(from + static_cast<uint32_t>(h * 8 * kScaleRowBytes)));
    to.stage = stage.index;
    stage.advance();
  };
  const auto add = [&](Step& from) {
    keep_in_order(from.part);
    __syncwarp();  // all lanes have their scales
    release(from.stage);
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] = fmaf(from.part[i], from.scales[i / 2 % 2], d[i]);
  };
  // Where a product's sums are read in the next round of a loop, ptxas makes all products wait for
  // each other (C7514). So no product is under way at a round's end.
  for (int step = 0; step < steps; step += kScalesOfRow) {
    Step parts[2];
    start(parts[0], 0);
#pragma unroll
    for (int i = 1; i < kScalesOfRow; ++i) {
      start(parts[i % 2], i);
      cute::warpgroup_wait<1>();
      add(parts[(i - 1) % 2]);
    }
    cute::warpgroup_wait<0>();
    add(parts[(kScalesOfRow - 1) % 2]);
  }
}

/// Multiplies a transposed tile's accumulators by the scales of the left operand's rows.
template <int count>
__device__ __forceinline__ void scale_rows(const GroupedArguments& args, const GroupedTile& tile,
                                           int lane, float (&d)[count]) {
#pragma unroll
  for (int j = 0; j < count / 4; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = tile.m + 8 * j + 2 * (lane % 4) + e;
      const float scale = row < tile.rows ? args.row_scales[tile.begin + row] : 0.0f;
      d[4 * j + e] *= scale;
      d[4 * j + 2 + e] *= scale;
    }
}

/// Writes a transposed tile's accumulators of 64 rows of the result, those of epilogue `half`, to
/// its buffer: a box of 64 rows of 64 bf16.
template <int count>
__device__ __forceinline__ void store_transposed(const float (&d)[count], int half, float scale,
                                                 uint8_t* to, int thread) {
  const int lane = thread % 32, warp = thread / 32;
#pragma unroll
  for (int j = 0; j < kRows / 8; j += 2) {
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      // Matrices of 8 rows of the result: two, of 16 columns each.
      const int first = 4 * (half * (kRows / 8) + j + w / 2) + 2 * (w % 2);
      words[w] = pack_bf16(d[first] * scale, d[first + 1] * scale);
    }
    const int matrix = lane / 8, row = 8 * (j + matrix / 2) + lane % 8;
    store_matrices_transposed(to + swizzled(row, warp * 2 + matrix % 2), words);
  }
}

/// Passes a tile of e4m3 to the epilogues. This consumer has half of the tile's columns, and so a
/// box for each of the two: the same one of their buffers.
template <class P, int count>
__device__ __forceinline__ void pass_scaled(const GroupedArguments& args, typename P::Storage& s,
                                            const GroupedTile& tile, int consumer, int thread,
                                            const float (&d)[count],
                                            uint32_t (&phases)[kConsumers]) {
#pragma unroll
  for (int half = 0; half < kConsumers; ++half) {
    if (rows_left<P>(args, tile, half) == 0) continue;
    Barrier::wait(&s.out_empty[half][consumer], phases[half] ^ 1);
    store_transposed(d, half, args.scale, s.out[half][consumer], thread);
    cutlass::arch::fence_view_async_shared();
    __syncwarp();
    if (thread % 32 == 0) Barrier::arrive(&s.out_full[half][consumer]);
    phases[half] ^= 1;
  }
}

/// Sums a tile of bf16.
template <class P, int count, class Release>
__device__ __forceinline__ void sum_plain(typename P::Storage& s, const GroupedTile& tile,
                                          PipelineState<P::stages>& stage, int steps, uint64_t a0,
                                          uint64_t b0, int consumer, int thread, float (&d)[count],
                                          const Release& release) {
  using Major = cute::SM90::GMMA::Major;
  constexpr Major major_a = P::form == Form::weight ? Major::MN : Major::K;
  constexpr Major major_b = P::form == Form::forward ? Major::K : Major::MN;
  using Mma = std::conditional_t<P::tile_n == 256,
                                 cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<major_a, major_b>,
                                 cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<major_a, major_b>>;
  // Descriptor offsets of 16 inner indices: 32 bytes where these are contiguous, else 16 rows.
  constexpr int next_a = (major_a == Major::K ? 32 : 16 * kRowBytes) / 16;
  constexpr int next_b = (major_b == Major::K ? 32 : 16 * kRowBytes) / 16;
  int before = 0;
  for (int step = 0; step < steps; ++step, stage.advance()) {
    Barrier::wait(&s.full[stage.index], stage.phase);
    if constexpr (P::form == Form::weight)
      if (step + 1 == steps && tile.rows % kTileK != 0)
        clear_tail<P>(s, stage.index, tile.rows % kTileK, consumer, thread);
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
}

template <class P>
__device__ __forceinline__ void multiply_tiles(const GroupedArguments& args, typename P::Storage& s,
                                               int rank, int consumer, int thread) {
  constexpr int count = P::tile_n / 2;
  const uint64_t a0 = operand(s.a[0] + consumer * kBoxBytes, kBoxBytes);
  const uint64_t b0 = operand(s.b[0], kBoxBytes);
  [[maybe_unused]] uint32_t phases[kConsumers] = {};  // scaled: of the epilogues' buffers
  GroupedTiles<P> tiles(args, rank);
  GroupedTile tile;
  PipelineState<P::stages> stage;
  PipelineState<2> out;
  const auto release = [&](int which) {
    if (thread % 32 < P::cluster) Barrier::arrive(&s.empty[which], thread % 32, 1);
  };
  float d[count];
  while (tiles.next(tile)) {
    const int steps = inner_steps<P>(args, tile);
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] = 0;
    if constexpr (P::scaled) {
      sum_scaled<P>(s, stage, steps, consumer, thread, d, release);
      scale_rows(args, tile, thread % 32, d);
      pass_scaled<P>(args, s, tile, consumer, thread, d, phases);
      continue;
    } else {
      sum_plain<P>(s, tile, stage, steps, a0, b0, consumer, thread, d, release);
    }
    if (rows_left<P>(args, tile, consumer) == 0) continue;
    const auto work = [&](auto subtile) {
      // In the first round both buffers are empty already, unless the result's boxes are loaded
      // into them.
      Barrier::wait(&s.out_empty[consumer][out.index], out.phase ^ (P::reads_sum ? 0 : 1));
      store_accumulators<P, subtile()>(d, args.scale, s.out[consumer][out.index], thread);
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (thread % 32 == 0) Barrier::arrive(&s.out_full[consumer][out.index]);
      out.advance();
    };
    each_subtile(work, std::make_integer_sequence<int, P::subtiles>{});
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
      Barrier::init(&s.empty[i], P::cluster * kConsumers * 4);
    }
    for (int i = 0; i < kConsumers; ++i)
      for (int buffer = 0; buffer < 2; ++buffer) {
        Barrier::init(&s.out_full[i][buffer], 4);
        Barrier::init(&s.out_empty[i][buffer], 1);
      }
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_arrive_relaxed();
  cute::cluster_wait();
  __syncthreads();
  // The producer's warpgroup gives registers to the consumers: 88 + 2 · 208 = 504 for three
  // threads, as it was with 168 each. Those of e4m3 have two steps' sums beside the tile's.
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<P::scaled ? 56 : 88>();
    const int warp = thread / 32;
    if (warp < kConsumers) {
      Epilogue<P>(args, s, warp, thread % 32).run(rank);
    } else if (warp == kConsumers && cute::elect_one_sync()) {
      // By elect_one_sync the compiler knows that one thread goes on, so it needs no loops over the
      // values of different lanes before each load.
      load_tiles<P>(args, s, rank);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<P::scaled ? 224 : 208>();
    multiply_tiles<P>(args, s, rank, warpgroup - 1, thread);
  }
  // Wait until the cluster's other block no longer needs this one's shared memory.
  __syncwarp();
  cute::cluster_arrive();
  cute::cluster_wait();
}

}  // namespace mixtral::cuda
