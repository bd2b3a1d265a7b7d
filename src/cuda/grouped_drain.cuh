#pragma once

#include "cuda/grouped_plan.cuh"

namespace mixtral::cuda {

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

}  // namespace mixtral::cuda
