#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/stream_multiply.cuh"
#include "cuda/stream_shape.cuh"

/// The kernel of streamed products. Reading the weights bounds them, so that as many bytes as
/// possible have to be on their way all the time. Blocks stay for the whole product and take items
/// in turn: 16 rows of weights by up to 8 rows of x (or 32 by 16), over all columns. The steps of
/// an item, a line of 128 bytes of each row, fall to the block's 8 warps in turn. Each warp copies
/// its lines into a ring of its own in shared memory, several steps ahead and on into the block's
/// next items, so that the stream never stops. A lane's codes go to tensor cores as they arrive:
/// the same columns of x go along, so their order within a step does not matter. x comes from the
/// first-level cache, which each warp has fetch what it will need of the group's rows: all blocks
/// read the same few lines, too many for the second-level cache to answer.
///
/// At an item's end each warp leaves its sums, and one of them, another for each item, adds all of
/// them in a fixed order; the others are not held up. The order of a sum depends on the inner index
/// alone: a row's bits do not depend on the rows beside it.
namespace mixtral::cuda {

// Barriers in shared memory (mbarrier). A phase ends when as many have arrived as were given;
// waiting for the phase of parity 1 of a new one returns at once.
__device__ inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}
__device__ inline void make_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void await(uint64_t* barrier, int parity) {
  uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

/// What the warps of a block agree on beside the streams.
struct StreamMeeting {
  uint64_t full[kStreamTurns], free[kStreamTurns];  // the places for sums
  int offsets[kMostStreamGroups + 1];
};

template <StreamCodec codec, int tiles, int row_tiles, bool gated, class Y>
class Stream {
  using Traits = StreamTraits<codec>;
  using Shape = StreamShape<codec, tiles, row_tiles>;
  using Place = StreamPlace<8 * row_tiles>;
  using Multiplier = StreamMultiplier<codec, tiles, row_tiles>;
  using Columns = typename Multiplier::Columns;

 public:
  __device__ Stream(const StreamTask<Y>& op, char* shared, StreamMeeting& meeting)
      : op_(op),
        meeting_(meeting),
        sums_(reinterpret_cast<float*>(shared)),
        multiplier_(reinterpret_cast<uint32_t*>(shared + Shape::kSums), op.block_shift,
                    op.half_scales),
        ring_(shared + Shape::kFixed + warp_ * (Shape::kSteps * Shape::kStep)),
        steps_(static_cast<int>((op.code_bytes + kStreamStepBytes - 1) / kStreamStepBytes)),
        ahead_(meeting.offsets, op.groups, item_tiles(op), static_cast<int>(blockIdx.x)),
        here_(ahead_) {
    find_rows();
  }

  __device__ static int item_tiles(const StreamTask<Y>& op) {
    constexpr int kOutputs = (gated ? 8 : 16) * tiles;
    return (op.outputs + kOutputs - 1) / kOutputs;
  }

  /// Starts the copies that fill the ring, of weights only: they are the same at any time.
  __device__ void begin() {
    for (int i = 0; i < Shape::kSteps - 1; ++i) {
      fetch(i);
      __pipeline_commit();
    }
  }

  __device__ void run() {
    int slot = 0, warmed = -1;
    Columns next;
    for (int turn = 0; !here_.at_end(); here_.advance(static_cast<int>(gridDim.x)), ++turn) {
      float sums[tiles][row_tiles][4] = {};
      const int count = here_.count(), first_row = here_.first_row();
      const Bf16* x = op_.x + int64_t{first_row} * op_.inputs;
      if (first_row != warmed) {
        warmed = first_row;
        warm(x, count);
        load_x(x, 2 * warp_, count, next);
      }
      const bool adds = turn % kStreamWarps == warp_;
      float shares[row_tiles] = {};
      if constexpr (gated)
        if (adds) load_shares(first_row, count, shares);
      for (int step = warp_; step < steps_; step += kStreamWarps) {
        __pipeline_wait_prior(Shape::kSteps - 2);
        __syncwarp();  // all lanes' copies have arrived, and the slot before has been read
        fetch(slot == 0 ? Shape::kSteps - 1 : slot - 1);
        __pipeline_commit();
        const int after = step + kStreamWarps < steps_ ? step + kStreamWarps : warp_;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Columns now;
#pragma unroll
          for (int r = 0; r < row_tiles; ++r)
#pragma unroll
            for (int p = 0; p < Traits::kXParts; ++p) now[r][p] = next[r][p];
          load_x(x, half == 0 ? 2 * step + 1 : 2 * after, count, next);
          multiplier_.multiply(ring_ + slot * Shape::kStep, half, step, now, sums);
        }
        slot = slot + 1 == Shape::kSteps ? 0 : slot + 1;
      }
      leave(sums, turn);
      if (adds) finish(turn, first_row, count, shares);
    }
  }

 private:
  static constexpr int kCopies = 4;  // of 16 bytes a lane, for a tile: four rows each

  /// Row `row` of 16 of a tile, in the weights.
  __device__ int64_t row_of(int tile, int row) const {
    const int first = ahead_.tile() * tiles + tile;
    const int64_t of_group = int64_t{ahead_.group} * (gated ? 2 : 1) * op_.outputs;
    if constexpr (gated)
      return of_group + row / 8 * op_.outputs + min(first * 8 + row % 8, op_.outputs - 1);
    return of_group + min(first * 16 + row, op_.outputs - 1);
  }

  /// Where the item that is copied stands.
  __device__ void find_rows() {
    if (ahead_.at_end()) return;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
#pragma unroll
      for (int c = 0; c < kCopies; ++c)
        codes_[i][c] = op_.codes + row_of(i, 4 * c + lane_ / 8) * op_.code_bytes;
      if constexpr (Traits::kScaled) scaled_row_[i] = row_of(i, quarter_ / 2 * 8 + group_);
    }
  }

  /// Starts the copies of the next step of the stream into a slot. At the stream's end, nothing.
  __device__ void fetch(int slot) {
    while (step_ >= steps_ && !ahead_.at_end()) {
      step_ = warp_;
      ahead_.advance(static_cast<int>(gridDim.x));
      find_rows();
    }
    if (ahead_.at_end()) return;
    char* to = ring_ + slot * Shape::kStep;
    const int64_t byte = int64_t{step_} * kStreamStepBytes + lane_ % 8 * 16;
    const bool inside = byte < op_.code_bytes;
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int c = 0; c < kCopies; ++c)
        __pipeline_memcpy_async(to + Multiplier::place(16 * i + 4 * c + lane_ / 8, lane_ % 8),
                                codes_[i][c] + (inside ? byte : 0), 16, inside ? 0 : 16);
    if constexpr (Traits::kScaled)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        fetch_scales(to + Shape::kWeights + half * Shape::kScales, 2 * step_ + half);
    step_ += kStreamWarps;
  }

  /// Has the cache fetch the columns of x that this warp will read, of so many rows, at one time.
  __device__ void warm(const Bf16* x, int count) const {
    constexpr int kSector = 16;                               // elements
    constexpr int kSectors = 2 * Traits::kColumns / kSector;  // of a step
    const int steps = steps_ > warp_ ? (steps_ - warp_ + kStreamWarps - 1) / kStreamWarps : 0;
    const int of_row = steps * kSectors;
#pragma unroll 4
    for (int i = lane_; i < count * of_row; i += kWarp) {
      const int row = i / of_row, rest = i - row * of_row;
      const int step = warp_ + rest / kSectors * kStreamWarps;
      const int column = (step * kSectors + rest % kSectors) * kSector;
      if (column >= op_.inputs) continue;
      uint32_t unused;
      asm volatile("ld.global.u32 %0, [%1];"
                   : "=r"(unused)
                   : "l"(x + int64_t{row} * op_.inputs + column));
    }
  }

  /// The lane's columns of x for half a step.
  __device__ void load_x(const Bf16* x, int half, int count, Columns& to) const {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      const int row = r * 8 + group_;
#pragma unroll
      for (int part = 0; part < Traits::kXParts; ++part) {
        const int column = half * Traits::kColumns + multiplier_.column_of(part);
        to[r][part] = {0, 0, 0, 0};
        if (row < count && column < op_.inputs)
          to[r][part] = *reinterpret_cast<const uint4*>(x + int64_t{row} * op_.inputs + column);
      }
    }
  }

  /// The scales of a row and half a step are at most two words. The lanes of a row, and of the one
  /// 8 rows on, fetch one each.
  __device__ void fetch_scales(char* to, int half) {
    const int which = quarter_ % 2;
    const int block = (half * Traits::kColumns) >> op_.block_shift;
    const char* piece = op_.scales;
    int word = block;
    if constexpr (Traits::kMinimum) {
      if (which) piece = op_.minima;
      word = block / 2;
    } else if (codec == StreamCodec::nf4) {
      word += which;
    } else if (which) {
      return;
    }
    word = min(word, op_.scale_words - 1);
#pragma unroll
    for (int i = 0; i < tiles; ++i)
      __pipeline_memcpy_async(to + (i * kWarp + lane_) * 4,
                              piece + (scaled_row_[i] * op_.scale_words + word) * 4, 4);
  }

  // A part's results: lane (g, q) of a fragment has rows 2q and 2q + 1 of x, at outputs g and g + 8
  // of a tile (with SwiGLU, at gate and up of output g). One warp writes them, in as many rounds.
  static constexpr int kEach = gated ? 2 : 4;  // results of a fragment's lane

  /// The row of x that a lane writes, of a tile of rows: the same in every round.
  __device__ int result_row() const { return lane_ / kEach % 4 * 2 + lane_ % 2; }

  __device__ void load_shares(int first_row, int count, float (&shares)[row_tiles]) const {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      const int row = r * 8 + result_row();
      if (row < count) shares[r] = op_.weights[op_.source[first_row + row]];
    }
  }

  __device__ float* sums_of(int turn) const {
    return sums_ + turn % kStreamTurns * (kStreamWarps * Shape::kParts * kWarp * 4);
  }

  /// Leaves this warp's sums of an item, once there is room for them.
  __device__ void leave(const float (&sums)[tiles][row_tiles][4], int turn) {
    await(&meeting_.free[turn % kStreamTurns], (turn / kStreamTurns & 1) ^ 1);
    auto* all = reinterpret_cast<float4*>(sums_of(turn));
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int r = 0; r < row_tiles; ++r)
        all[(warp_ * Shape::kParts + i * row_tiles + r) * kWarp + lane_] = {
            sums[i][r][0], sums[i][r][1], sums[i][r][2], sums[i][r][3]};
    arrive(&meeting_.full[turn % kStreamTurns]);
  }

  /// Adds all warps' sums and writes the item's results.
  __device__ void finish(int turn, int first_row, int count, const float (&shares)[row_tiles]) {
    await(&meeting_.full[turn % kStreamTurns], turn / kStreamTurns & 1);
    const float* values = sums_of(turn);
    const auto total = [&](int index) {
      float sum = values[index];
#pragma unroll
      for (int w = 1; w < kStreamWarps; ++w) sum += values[w * Shape::kParts * kWarp * 4 + index];
      return sum;
    };
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int r = 0; r < row_tiles; ++r)
#pragma unroll
        for (int round = 0; round < kEach; ++round) {
          const int at = round * kWarp + lane_, j = at % kEach, lane = at / kEach;
          const int row = r * 8 + result_row(), tile = here_.tile() * tiles + i;
          const int output = gated ? tile * 8 + lane / 4 : tile * 16 + j / 2 * 8 + lane / 4;
          if (row >= count || output >= op_.outputs) continue;
          const int index = ((i * row_tiles + r) * kWarp + lane) * 4 + j;
          Y* to = op_.y + int64_t{first_row + row} * op_.y_stride + output;
          if constexpr (gated) {
            *to = narrow<Y>(swiglu<Y>(total(index), total(index + 2), shares[r]));
          } else {
            const float before = op_.accumulate ? widen<float>(*to) : 0.0f;
            *to = narrow<Y>(fmaf(op_.scale, total(index), before));
          }
        }
    arrive(&meeting_.free[turn % kStreamTurns]);
  }

  const StreamTask<Y>& op_;
  StreamMeeting& meeting_;
  const int lane_ = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_ = static_cast<int>(threadIdx.x) / kWarp;
  const int group_ = lane_ / 4, quarter_ = lane_ % 4;  // of a fragment of mma
  float* sums_;
  Multiplier multiplier_;
  char* ring_;
  int steps_;
  Place ahead_, here_;  // what is copied next, and what is computed
  int step_ = warp_;    // of ahead_
  const char* codes_[tiles][kCopies];
  int64_t scaled_row_[tiles];
};

template <StreamCodec codec, int tiles, int row_tiles, bool gated, class Y>
__global__ void __launch_bounds__(kStreamThreads, StreamShape<codec, tiles, row_tiles>::kBlocks)
    stream(const __grid_constant__ StreamTask<Y> op) {
  using Shape = StreamShape<codec, tiles, row_tiles>;
  extern __shared__ __align__(128) char shared[];
  __shared__ StreamMeeting meeting;
  if constexpr (StreamTraits<codec>::kTable)
    make_level_table(reinterpret_cast<uint32_t*>(shared + Shape::kSums));
  if (threadIdx.x == 0)
    for (int i = 0; i < kStreamTurns; ++i) {
      make_barrier(&meeting.full[i], kStreamWarps * kWarp);
      make_barrier(&meeting.free[i], kWarp);
    }
  if (!op.early) {
    wait_for_previous();
    allow_next();
  }
  for (int i = static_cast<int>(threadIdx.x); i <= op.groups; i += kStreamThreads)
    meeting.offsets[i] = op.offsets ? __ldcg(op.offsets + i) : i * op.rows;
  __syncthreads();
  Stream<codec, tiles, row_tiles, gated, Y> work(op, shared, meeting);
  work.begin();
  if (op.early) {
    wait_for_previous();
    allow_next();
  }
  work.run();
}

}  // namespace mixtral::cuda
