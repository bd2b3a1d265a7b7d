#pragma once

#include <cuda_pipeline_primitives.h>

#include <type_traits>
#include <utility>

#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/stream_integer.cuh"
#include "cuda/stream_numbers.cuh"
#include "cuda/stream_shape.cuh"

/// The kernel of streamed products. Reading the weights bounds them, so that as many bytes as
/// possible have to be on their way all the time. Teams of warps stay for the whole product and
/// take items in turn: 16 or 32 rows of weights by up to 4 or 8 rows of x (or 32 by 16 or 32), over
/// all columns. A step of an item is a line of 128 bytes of each row. The team's warps take steps
/// in turn. Each warp has a ring buffer in shared memory and copies its lines and their scales
/// there, several steps ahead and on into the team's next items, so that the stream never stops.
/// Where instructions are the bound, TMA copies the lines of all rows at once. A lane's codes go to
/// tensor cores as they arrive: the same columns of x go along, so their order within a step does
/// not matter. x comes from the first-level cache, which each warp has fetch what it will need of
/// the group's rows: all teams read the same few lines, too many for the second-level cache to
/// answer. Scales and minima that lanes copy go through that cache, too: each takes a line of it,
/// and holds up the loads of x behind it. So TMA copies them where that pays.
///
/// At an item's end each warp leaves its sums, and one of them, another for each item, adds all of
/// them in a fixed order; the others are not held up. The order of a sum depends on the inner index
/// and the team's warps alone: a row's bits do not depend on the rows beside it, except that in fp8
/// and integers they do on whether there are more than eight (StreamShape::kWarps).
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
__device__ inline void await(uint32_t barrier, int parity) {
  uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
}
__device__ inline void await(uint64_t* barrier, int parity) {
  await(shared_address(barrier), parity);
}

/// Starts copying a box to shared memory; `arrived` counts its bytes. `policy`: of the second-level
/// cache.
__device__ inline void copy_box(const CUtensorMap& map, uint64_t policy, int column, int row,
                                uint32_t to, uint32_t arrived) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(arrived), "r"(column), "r"(row), "l"(policy)
      : "memory");
}
/// Lets a phase of a barrier of one arrival end when so many bytes have come.
__device__ inline void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// What the warps of a team agree on.
template <class Shape>
struct StreamMeeting {
  uint64_t full[kStreamTurns], free[kStreamTurns];  // the places for sums
  uint64_t arrived[Shape::kWarps][Shape::kLoads];   // codes of each warp's loads
  uint64_t chunk_full[Shape::kChunkPlaces], chunk_free[Shape::kChunkPlaces];
  // How far the first lane is with having chunks copied (fetch_chunk).
  int group, item, chunks_of_rows, chunk, place, phase;
};

/// `wide`: the scales of each step are side by side, and aligned to be copied at once.
template <StreamCodec codec, int tiles, int rows, bool gated, bool wide, class Y>
class Stream {
  using Traits = StreamTraits<codec>;
  using Shape = StreamShape<codec, tiles, rows, wide>;
  using Place = StreamPlace<rows>;
  /// A load has its tiles one after another; gated, all of its gates' rows in front of all ups'.
  static constexpr int kTileBytes = gated ? 8 * kStreamStepBytes : Shape::kWeights;
  static constexpr int kFar = 8 * kStreamStepBytes * (gated ? Shape::kTogether : 1);
  // In a chunk, the same of scales.
  static constexpr int kTileScales = (gated ? 8 : 16) * Shape::kChunkBytes;
  static constexpr int kFarScales = 8 * Shape::kChunkBytes * (gated ? tiles : 1);
  using Multiplier =
      std::conditional_t<Traits::kInteger, StreamIntegers<codec, Shape, kFar, kFarScales, wide>,
                         StreamNumbers<codec, Shape, kFar, kFarScales, wide>>;
  using Columns = typename Multiplier::Columns;
  using Rows = typename Multiplier::Rows;
  using X = typename Multiplier::X;

 public:
  using Task =
      std::conditional_t<Shape::kChunks, ChunkedStreamTask<Y, Traits::kScaleArrays>, StreamTask<Y>>;

  /// `shared`: the team's; `offsets`: in shared memory, as `shares`: the team's room for what the
  /// rows of h are multiplied by.
  __device__ Stream(const Task& op, char* shared, const char* table, const int* offsets,
                    float* shares, StreamMeeting<Shape>& meeting)
      : op_(op),
        meeting_(meeting),
        shares_(shares),
        sums_(reinterpret_cast<float*>(shared + Shape::kSumsAt)),
        multiplier_(shared_address(table), op.block_shift),
        codes_(shared_address(shared) + warp_ * (Shape::kLoads * Shape::kCodesOfLoad)),
        scales_at_(shared_address(shared) + Shape::kScalesAt +
                   warp_ * (Shape::kLoads * Shape::kScalesOfLoad)),
        arrived_(shared_address(meeting.arrived[warp_])),
        chunks_at_(shared_address(shared) + Shape::kChunksAt),
        steps_((op.code_bytes + kStreamStepBytes - 1) / kStreamStepBytes),
        stride_(static_cast<int>(gridDim.x) * Shape::kTeams),
        // Teams of one block are far apart, so that few items go to many multiprocessors.
        ahead_(offsets, op.groups, item_tiles(op),
               static_cast<int>(blockIdx.x + threadIdx.x / Shape::kTeamThreads * gridDim.x)),
        here_(ahead_) {
    find_item();
  }

  __device__ static int item_tiles(const Task& op) {
    return (op.outputs + kOutputs - 1) / kOutputs;
  }

  /// Starts the copies that fill the ring, of weights only: they are the same at any time.
  __device__ void begin() {
    if constexpr (Shape::kChunks)
      if (warp_ == 0 && lane_ == 0) {
        leave_place(here_);
        meeting_.chunk = meeting_.place = meeting_.phase = 0;
        for (int i = 0; i < Shape::kChunkPlaces - 1; ++i) fetch_chunk();
      }
#pragma unroll
    for (int i = 0; i < Shape::kLoads - 1; ++i) {
      fetch(i % kLoadsOfStep);
      commit();
    }
  }

  __device__ void run() {
    static_assert(kMostGatedRows <= Shape::kTeamThreads);
    const int thread = warp_ * kWarp + lane_;
    [[maybe_unused]] int source = 0;
    [[maybe_unused]] float share = 0;
    if (gated && thread < op_.rows) source = op_.source[thread];
    int warmed = -1;
    Columns next;
    for (int turn = 0; !here_.at_end(); here_.advance(stride_), ++turn) {
      float sums[tiles][kRowTiles][4] = {};
      const int count = here_.count(), first_row = here_.first_row();
      const Rows x(op_, first_row, count);
      constexpr int kAll = Multiplier::kXTiles;
      if (first_row != warmed) {
        warmed = first_row;
        const int steps = steps_ > warp_ ? (steps_ - warp_ + Shape::kWarps - 1) / Shape::kWarps : 0;
        Multiplier::warm(op_, first_row, count, warp_, steps);
        if constexpr (Shape::kAhead) multiplier_.template load<kAll>(op_, x, warp_, 0, next);
      }
      // A share waits for memory twice: behind the first loads of x, and used after the first item.
      if (gated && turn == 0 && thread < op_.rows) share = op_.weights[source];
      if (Multiplier::kOneRow && rows == 8 && count == 1)
        multiply_steps<kAll, Multiplier::kOneRow>(x, next, sums);
      else if (kAll > 1 && rows <= 16 && 2 * count <= rows)
        multiply_steps<(kAll > 1 ? kAll / 2 : 1), false>(x, next, sums);
      else
        multiply_steps<kAll, false>(x, next, sums);
      if constexpr (Shape::kChunks) {
        enter_chunk(chunks_of_item() - 1);
        leave_chunk();
        chunk_ = -1;
      }
      if (gated && turn == 0 && thread < op_.rows) shares_[thread] = share;
      leave(sums, turn);
      if (turn % Shape::kWarps == warp_) finish(turn, first_row, count);
    }
  }

 private:
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kOutputs = (gated ? 8 : 16) * tiles;  // of an item
  static constexpr int kLoadsOfStep = tiles / Shape::kTogether;
  static constexpr int kCopiedTiles = Shape::kBoxes ? 1 : tiles;
  static constexpr int kCopies = Shape::kBoxes ? 1 : 4;  // of 16 bytes a lane: four rows each
  static constexpr bool kOwnScales = Traits::kScaled && !Shape::kChunks;
  static constexpr bool kAsynchronous = !Shape::kBoxes || kOwnScales;  // lanes copy, too

  /// The product of an item's weights and its first `active` tiles of x, of this warp's steps.
  template <int active, bool one>
  __device__ void multiply_steps(const Rows& x, Columns& next, float (&sums)[tiles][kRowTiles][4]) {
    for (int step = warp_; step < steps_; step += Shape::kWarps) {
      const int after = step + Shape::kWarps < steps_ ? step + Shape::kWarps : warp_;
      if constexpr (Shape::kChunks) enter_chunk(step / Shape::kChunkSteps);
      const auto compute = [&](auto piece) {
        [[maybe_unused]] Columns now;
        X arranged;
        if constexpr (!Shape::kAhead) {
          multiplier_.template load<active>(op_, x, step, piece, now);
        } else {
          Multiplier::template arrange<active>(next, arranged);
          if (piece + 1 < Shape::kPieces)
            multiplier_.template load<active>(op_, x, step, piece + 1, next);
          else
            multiplier_.template load<active>(op_, x, after, 0, next);
        }
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (piece == 0 && tile % Shape::kTogether == 0) {
            if (tile > 0) next_load();
            if constexpr (kAsynchronous) __pipeline_wait_prior(Shape::kLoads - 2);
            if constexpr (Shape::kBoxes) await(arrived_ + 8 * load_, phase_);
            __syncwarp();  // all lanes' copies have arrived, and the load that is filled was read
            fetch((tile / Shape::kTogether + Shape::kLoads - 1) % kLoadsOfStep);
            commit();
          }
          if constexpr (!Shape::kAhead)
            if (tile == 0) Multiplier::template arrange<active>(now, arranged);
          constexpr int kMask = Shape::kTogether - 1;
          multiplier_.template multiply<active, one>(
              codes_ + load_ * Shape::kCodesOfLoad + (tile & kMask) * kTileBytes,
              Shape::kChunks
                  ? chunks_at_ +
                        static_cast<uint32_t>(chunk_place_ * Shape::kChunk + tile * kTileScales)
                  : scales_at_ + load_ * Shape::kScalesOfLoad + (tile & kMask) * Shape::kScales,
              piece, step, arranged, sums[tile]);
        }
      };
      [&]<int... piece>(std::integer_sequence<int, piece...>) {
        (compute(std::integral_constant<int, piece>{}), ...);
      }(std::make_integer_sequence<int, Shape::kPieces>{});
      next_load();
    }
  }

  // Chunks of scales, for all warps of a team. The first lane has them copied ahead.

  __device__ int chunks_of_item() const {
    return (steps_ + Shape::kChunkSteps - 1) / Shape::kChunkSteps;
  }

  /// Goes on to a chunk of the item, through those between.
  __device__ void enter_chunk(int chunk) {
    while (chunk_ < chunk) {
      if (chunk_ >= 0) leave_chunk();
      ++chunk_;
      await(&meeting_.chunk_full[chunk_place_], chunk_phase_);
      if (warp_ == 0 && lane_ == 0) fetch_chunk();
    }
  }
  /// Says that this warp has read all of a chunk.
  __device__ void leave_chunk() {
    __syncwarp();
    if (lane_ == 0) arrive(&meeting_.chunk_free[chunk_place_]);
    chunk_place_ = (chunk_place_ + 1) % Shape::kChunkPlaces;
    if (chunk_place_ == 0) chunk_phase_ ^= 1;
  }

  /// Starts copying the team's next chunk, once all warps have left the one that was in its place.
  __device__ void fetch_chunk() {
    Place ahead = here_;
    ahead.group = meeting_.group;
    ahead.item = meeting_.item;
    ahead.chunks = meeting_.chunks_of_rows;
    if (ahead.at_end()) return;
    const int place = meeting_.place;
    await(&meeting_.chunk_free[place], meeting_.phase ^ 1);
    const uint32_t full = shared_address(&meeting_.chunk_full[place]);
    const uint32_t to = chunks_at_ + static_cast<uint32_t>(place * Shape::kChunk);
    const int column = meeting_.chunk * Shape::kChunkBytes;
    const int row = ahead.group * (gated ? 2 : 1) * op_.outputs + ahead.tile() * kOutputs;
    expect_bytes(full, Shape::kChunk);
#pragma unroll
    for (int i = 0; i < Traits::kScaleArrays; ++i) {
      const uint32_t to_array = to + static_cast<uint32_t>(i * Shape::kMinimaAt);
      copy_box(op_.chunks[i], op_.policy, column, row, to_array, full);
      if constexpr (gated)
        copy_box(op_.chunks[i], op_.policy, column, row + op_.outputs, to_array + kFarScales, full);
    }
    meeting_.place = (place + 1) % Shape::kChunkPlaces;
    if (meeting_.place == 0) meeting_.phase ^= 1;
    if (++meeting_.chunk < chunks_of_item()) return;
    meeting_.chunk = 0;
    ahead.advance(stride_);
    leave_place(ahead);
  }
  __device__ void leave_place(const Place& place) {
    meeting_.group = place.group;
    meeting_.item = place.item;
    meeting_.chunks_of_rows = place.chunks;
  }

  /// Ends a group of a lane's own copies.
  __device__ static void commit() {
    if constexpr (kAsynchronous) __pipeline_commit();
  }

  /// Goes on to the next load of the ring.
  __device__ void next_load() {
    if (++load_ < Shape::kLoads) return;
    load_ = 0;
    phase_ ^= 1;
  }

  __device__ void find_item() {
    more_ = warp_ < steps_ && !ahead_.at_end();
    if (!more_) return;
    const int first = ahead_.tile() * kOutputs;
    row_ = ahead_.group * (gated ? 2 : 1) * op_.outputs + first;
    if constexpr (!Shape::kBoxes) find_rows(first);
    if constexpr (kOwnScales) find_scales(first);
  }

  /// Row `row` of 16 of a tile, among all groups' rows, of the item that begins with output
  /// `first`; the last one again behind the end.
  __device__ int64_t row_of(int first, int tile, int row) const {
    const int output = first + tile * (gated ? 8 : 16) + (gated ? row % 8 : row);
    return int64_t{row_} - first + min(output, op_.outputs - 1) +
           (gated && row >= 8 ? op_.outputs : 0);
  }

  /// The addresses of the rows that the lane copies, 16 bytes at a time.
  __device__ void find_rows(int first) {
#pragma unroll
    for (int t = 0; t < kCopiedTiles; ++t)
#pragma unroll
      for (int c = 0; c < kCopies; ++c)
        rows_[t][c] = op_.rows_of_codes + row_of(first, t, 4 * c + lane_ / 8) * op_.code_bytes +
                      lane_ % 8 * 16;
  }
  /// The addresses of the scales that the lane copies, one for each tile of an item.
  __device__ void find_scales(int first) {
    const int row = Traits::kMinima ? quarter_ / 2 * 8 + Multiplier::row_at(group_)
                                    : (lane_ & 8) + Multiplier::row_at(lane_ % 8);
    const char* const from = Traits::kMinima && quarter_ % 2 ? op_.minima : op_.scales;
#pragma unroll
    for (int t = 0; t < tiles; ++t) scales_[t] = from + row_of(first, t, row) * op_.scale_stride;
  }

  /// Starts the copies of the stream's next tiles into the ring: those of load `load` of a step. At
  /// the stream's end, nothing.
  __device__ void fetch(int load) {
    if (!more_) return;
    const uint32_t to = codes_ + to_ * Shape::kCodesOfLoad;
    if constexpr (Shape::kBoxes) {
      if (lane_ == 0) {
        // Behind the end of a row there are zeros; what lies behind the last row is not used.
        const uint32_t arrived = arrived_ + 8 * to_;
        const int column = step_ * kStreamStepBytes;
        const int row = row_ + load * Shape::kTogether * (gated ? 8 : 16);
        expect_bytes(arrived, Shape::kCodesOfLoad);
        copy_box(op_.codes, op_.policy, column, row, to, arrived);
        if constexpr (gated)
          copy_box(op_.codes, op_.policy, column, row + op_.outputs, to + kFar, arrived);
      }
    } else {
      // Behind the end of a row its beginning is copied: x is 0 there.
      const bool inside = step_ * kStreamStepBytes + lane_ % 8 * 16 < op_.code_bytes;
      const int byte = inside ? step_ * kStreamStepBytes : -(lane_ % 8 * 16);
#pragma unroll
      for (int i = 0; i < Shape::kTogether; ++i)
#pragma unroll
        for (int c = 0; c < kCopies; ++c) {
          const int row = c % 2 * 4 + lane_ / 8;  // of eight
          copy16(to + static_cast<uint32_t>(i * kTileBytes + c / 2 * kFar + row * kStreamStepBytes +
                                            (lane_ % 8 ^ row) * 16),
                 rows_[load * Shape::kTogether + i][c] + byte, op_.policy);
        }
    }
    if constexpr (kOwnScales)
#pragma unroll
      for (int i = 0; i < Shape::kTogether; ++i)
        fetch_scales(scales_[load * Shape::kTogether + i],
                     scales_at_ + to_ * Shape::kScalesOfLoad + i * Shape::kScales);
    to_ = to_ + 1 == Shape::kLoads ? 0 : to_ + 1;
    if (load + 1 < kLoadsOfStep) return;
    step_ += Shape::kWarps;
    if (step_ < steps_) return;
    step_ = warp_;
    ahead_.advance(stride_);
    find_item();
  }

  __device__ static void copy16(uint32_t to, const char* from, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(from), "l"(policy)
                 : "memory");
  }
  template <int bytes>
  __device__ static void copy_scales(uint32_t to, const char* from, uint64_t policy) {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;" ::"r"(to),
                 "l"(from), "n"(bytes), "l"(policy)
                 : "memory");
  }

  /// Starts the copies of a tile's scales of a step: `scales` are this lane's row's, or its minima.
  __device__ void fetch_scales(const char* scales, uint32_t to) const {
    constexpr int kWords = Traits::kScaleWords, kBytes = 4 * kWords;
    const int which = lane_ % Traits::kScaleLanes;
    if constexpr (wide) {
      if (Traits::kScaleLanes == kWarp || lane_ < Traits::kScaleLanes)
        copy_scales<kBytes>(to + static_cast<uint32_t>(which * kBytes), scales + step_ * kBytes,
                            op_.policy);
      return;
    }
    constexpr int kLanes = kWarp / Traits::kScaleLanes;  // of a row
    constexpr int kEach = kWords < kLanes ? 1 : kWords / kLanes;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = lane_ / Traits::kScaleLanes * kEach + i;
      if (at >= kWords) return;
      // The first block of the columns that the word is for.
      uint32_t word =
          static_cast<uint32_t>((step_ * kWords + at) * (2 * Traits::kColumns / kWords)) >>
          op_.block_shift;
      if constexpr (Traits::kMinima) word /= 2;
      word = min(word, static_cast<uint32_t>(op_.scale_words - 1));
      copy_scales<4>(to + static_cast<uint32_t>(which * kBytes + at * 4), scales + word * 4,
                     op_.policy);
    }
  }

  // A part's results: lane (g, q) of a fragment has two rows of x, 2q and 2q + 1 or of fixed-point
  // rows q and q + 4 (or q alone), at outputs g and g + 8 of a tile (with SwiGLU, at gate and up of
  // output g). One warp writes them, in as many rounds.
  static constexpr int kRowsOfLane = Shape::kRowsOfLane;
  static constexpr int kEach = (gated ? 1 : 2) * kRowsOfLane;  // results of a fragment's lane

  /// The row of x that a lane writes, of a tile of rows: the same in every round.
  __device__ int result_row() const {
    const int quarter = lane_ / kEach % 4, second = lane_ % kRowsOfLane;
    return Traits::kInteger ? quarter + second * 4 : quarter * 2 + second;
  }

  __device__ float* sums_of(int turn) const {
    return sums_ + turn % kStreamTurns * (Shape::kWarps * Shape::kSumsOfWarp);
  }

  /// Leaves this warp's sums of an item, once there is room for them.
  __device__ void leave(const float (&sums)[tiles][kRowTiles][4], int turn) {
    await(&meeting_.free[turn % kStreamTurns], (turn / kStreamTurns & 1) ^ 1);
    float* const all = sums_of(turn) + warp_ * Shape::kSumsOfWarp;
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int at = (i * kRowTiles + r) * kWarp + lane_;
        const float(&of)[4] = sums[i][r];
        if constexpr (kRowsOfLane == 1)
          reinterpret_cast<float2*>(all)[at] = {of[0], of[2]};
        else
          reinterpret_cast<float4*>(all)[at] = {of[0], of[1], of[2], of[3]};
      }
    arrive(&meeting_.full[turn % kStreamTurns]);
  }

  /// Adds all warps' sums and writes the item's results.
  __device__ void finish(int turn, int first_row, int count) {
    await(&meeting_.full[turn % kStreamTurns], turn / kStreamTurns & 1);
    const float* values = sums_of(turn);
    const auto total = [&](int index) {
      float sum = values[index];
#pragma unroll
      for (int w = 1; w < Shape::kWarps; ++w) sum += values[w * Shape::kSumsOfWarp + index];
      return sum;
    };
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int round = 0; round < kEach; ++round) {
          const int at = round * kWarp + lane_, j = at % kEach, lane = at / kEach;
          const int row = r * 8 + result_row(), tile = here_.tile() * tiles + i;
          const int of_eight = Multiplier::row_at(lane / 4);
          const int output =
              gated ? tile * 8 + of_eight : tile * 16 + j / kRowsOfLane * 8 + of_eight;
          if (row >= count || output >= op_.outputs) continue;
          const int index = ((i * kRowTiles + r) * kWarp + lane) * Shape::kSumsOfLane + j;
          Y* to = op_.y + int64_t{first_row + row} * op_.y_stride + output;
          if constexpr (gated) {
            *to = narrow<Y>(
                swiglu<Y>(total(index), total(index + kRowsOfLane), shares_[first_row + row]));
          } else {
            const float before = op_.accumulate ? widen<float>(*to) : 0.0f;
            *to = narrow<Y>(fmaf(op_.scale, total(index), before));
          }
        }
    arrive(&meeting_.free[turn % kStreamTurns]);
  }

  const Task& op_;
  StreamMeeting<Shape>& meeting_;
  float* shares_;
  const int lane_ = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_ = static_cast<int>(threadIdx.x) / kWarp % Shape::kWarps;
  const int group_ = lane_ / 4, quarter_ = lane_ % 4;  // of a fragment of mma
  float* sums_;
  Multiplier multiplier_;
  uint32_t codes_, scales_at_, arrived_;  // this warp's rings and their barriers, in shared memory
  uint32_t chunks_at_;                    // the team's
  int steps_, stride_;
  Place ahead_, here_;  // what is copied next, and what is computed
  int step_ = warp_;    // of ahead_
  uint32_t to_ = 0;     // the load that it goes to
  uint32_t load_ = 0;   // the load that is computed
  int phase_ = 0;       // of its barrier
  bool more_ = false;   // there is more to copy
  int row_ = 0;         // the first of the item that is copied, among all groups'
  const char* rows_[kCopiedTiles][kCopies];
  const char* scales_[kOwnScales ? tiles : 1];
  int chunk_ = -1, chunk_place_ = 0, chunk_phase_ = 0;  // in the item; in the team's memory
};

template <StreamCodec codec, int tiles, int rows, bool gated, bool wide, class Y>
__global__ void __launch_bounds__(StreamShape<codec, tiles, rows, wide>::kThreads,
                                  StreamShape<codec, tiles, rows, wide>::kBlocks)
    stream(const __grid_constant__ typename Stream<codec, tiles, rows, gated, wide, Y>::Task op) {
  using Shape = StreamShape<codec, tiles, rows, wide>;
  extern __shared__ char memory[];
  __shared__ StreamMeeting<Shape> meetings[Shape::kTeams];
  __shared__ int offsets[kMostStreamGroups + 1];
  __shared__ float shares[Shape::kTeams][gated ? kMostGatedRows : 1];
  char* const shared = memory + (-shared_address(memory) & (Shape::kAlign - 1));
  if constexpr (StreamTraits<codec>::kTable) make_level_table(reinterpret_cast<uint32_t*>(shared));
  if (threadIdx.x == 0) {
    const auto prefetch = [](const CUtensorMap& map) {
      asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
    };
    if constexpr (Shape::kBoxes) prefetch(op.codes);
    if constexpr (Shape::kChunks)
      for (const CUtensorMap& map : op.chunks) prefetch(map);
    for (StreamMeeting<Shape>& meeting : meetings) {
      for (int i = 0; i < kStreamTurns; ++i) {
        make_barrier(&meeting.full[i], Shape::kWarps * kWarp);
        make_barrier(&meeting.free[i], kWarp);
      }
      for (auto& warp : meeting.arrived)
        for (uint64_t& barrier : warp) make_barrier(&barrier, 1);
      for (int i = 0; i < Shape::kChunkPlaces; ++i) {
        make_barrier(&meeting.chunk_full[i], 1);
        make_barrier(&meeting.chunk_free[i], Shape::kWarps);
      }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // TMA sees them
  }
  if (!op.early) {
    wait_for_previous();
    allow_next();
  }
  for (int i = static_cast<int>(threadIdx.x); i <= op.groups; i += Shape::kThreads)
    offsets[i] = op.offsets ? __ldcg(op.offsets + i) : i * op.rows;
  __syncthreads();
  const int team = static_cast<int>(threadIdx.x) / Shape::kTeamThreads;
  Stream<codec, tiles, rows, gated, wide, Y> work(op,
                                                  shared + Shape::kTable + team * Shape::kTeamBytes,
                                                  shared, offsets, shares[team], meetings[team]);
  work.begin();
  if (op.early) {
    wait_for_previous();
    allow_next();
  }
  work.run();
}

}  // namespace mixtral::cuda
