#pragma once

#include "cuda/grouped_plan.cuh"

namespace mixtral::cuda {

/// The epilogue of one consumer warpgroup: a warp that stores what the warpgroup has computed from
/// shared memory to global memory, while the warpgroup multiplies the next tile. A tile is stored a
/// subtile at a time, through two buffers in turn. Barriers: out_full says that the consumer has
/// filled a buffer, out_empty that the epilogue has emptied it.
template <class P>
class Epilogue {
 public:
  __device__ Epilogue(const GroupedArguments& args, typename P::Storage& s, int consumer, int lane)
      : args_(args), s_(s), consumer_(consumer), lane_(lane) {}

  __device__ void run(int rank) {
    GroupedTiles<P> tiles(args_, rank);
    Addends addends{*this, GroupedTiles<P>(args_, rank)};
    if constexpr (P::reads_sum)
      for (int index = 0; index < 2; ++index) addends.load(index);
    for (Part tile = next_of(tiles); tile.rows > 0; tile = next_of(tiles)) {
      if constexpr (P::finish == Finish::gate)
        gate(tile);
      else
        for (int subtile = 0; subtile < P::subtiles; ++subtile)
          store_subtile(tile, subtile, addends);
    }
    if (lane_ == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }

 private:
  /// The consumer's half of a tile. Without rows: there are no more tiles.
  struct Part {
    int group, m, n, rows;
    int64_t row;  // the first one, counted over all groups
  };
  /// Where the product is added to the result: loads the result's boxes into the buffers by TMA, in
  /// the order in which the consumer takes them. The load itself arrives at out_empty.
  struct Addends {
    Epilogue& epilogue;
    GroupedTiles<P> tiles;
    int subtile = P::subtiles;
    Part tile{};

    __device__ void load(int index) {
      if (subtile == P::subtiles) subtile = 0, tile = epilogue.next_of(tiles);
      if (tile.rows == 0) return;
      if (epilogue.lane_ == 0) {
        uint64_t* loaded = &epilogue.s_.out_empty[epilogue.consumer_][index];
        cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(loaded, kBoxBytes);
        cute::SM90_TMA_LOAD_3D::copy(&epilogue.args_.result, loaded, kCacheHint,
                                     epilogue.s_.out[epilogue.consumer_][index],
                                     tile.n + subtile * 64, 0, static_cast<int>(tile.row));
      }
      ++subtile;
    }
  };

  __device__ Part next_of(GroupedTiles<P>& tiles) const {
    GroupedTile tile;
    while (tiles.next(tile)) {
      const int rows = rows_left<P>(args_, tile, consumer_);
      const int m = tile.m + consumer_ * kRows;
      if (rows > 0) return {tile.group, m, tile.n, rows, int64_t{tile.begin} + m};
    }
    return {};
  }

  __device__ void store_subtile(const Part& tile, int subtile, Addends& addends) {
    wait_full();
    if constexpr (P::form == Form::weight)
      store_gradient(tile, subtile);
    else
      store_box(args_.result, buffer(), tile, tile.n + subtile * 64, 0, args_.to, args_.to_stride);
    wait_read();
    if constexpr (P::reads_sum)
      addends.load(out_.index);
    else
      release(out_.index);
    out_.advance();
  }

  __device__ uint8_t* buffer() const { return s_.out[consumer_][out_.index]; }
  __device__ void wait_full() const {
    Barrier::wait(&s_.out_full[consumer_][out_.index], out_.phase);
  }
  /// Waits until all lanes and TMA have read the buffer that they store.
  __device__ void wait_read() const {
    if (lane_ == 0) cute::tma_store_wait<0>();
    __syncwarp();
  }
  __device__ void release(int index) const {
    if (lane_ == 0) Barrier::arrive(&s_.out_empty[consumer_][index]);
  }

  /// Stores a box of bf16 to global memory: by TMA, or by the lanes where the group has fewer rows.
  __device__ void store_box(const CUtensorMap& map, uint8_t* box, const Part& tile, int column,
                            int half, Bf16* to, int64_t stride) const {
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

  /// Adds a box of f32 to the gradient, or assigns it. A launch adds to each element once, so the
  /// order of the additions does not matter.
  __device__ void store_gradient(const Part& tile, int subtile) const {
    if (lane_ != 0) return;
    const int column = tile.n + subtile * 32;
    if constexpr (P::finish == Finish::add)
      cute::SM90_TMA_REDUCE_ADD_3D::copy(&args_.result, buffer(), column, tile.m, tile.group);
    else
      cute::SM90_TMA_STORE_3D::copy(&args_.result, buffer(), column, tile.m, tile.group);
    cute::tma_store_arrive();
  }

  /// Stores gate, which is in the first buffer, and up, which is in the second, and then SwiGLU's
  /// result h, which takes gate's buffer. h is computed from gate and up as rounded, because the
  /// backward pass reads those.
  __device__ void gate(const Part& tile) {
    const auto weight_of = [&](int row) {
      return row < tile.rows ? args_.weights[args_.source[tile.row + row]] : 0.0f;
    };
    const float weights[2] = {weight_of(lane_), weight_of(32 + lane_)};
    uint8_t* const buffers[2] = {s_.out[consumer_][0], s_.out[consumer_][1]};
    for (int half = 0; half < 2; ++half) {
      wait_full();
      out_.advance();
      for (int box = 0; args_.to && box < P::subtile_boxes; ++box)
        store_box(args_.result, buffers[half] + box * kBoxBytes, tile, tile.n + box * 64, half,
                  args_.to, args_.to_stride);
    }
    wait_read();
    for (int box = 0; box < P::subtile_boxes; ++box) {
      uint8_t* gates = buffers[0] + box * kBoxBytes;
      uint8_t* ups = buffers[1] + box * kBoxBytes;
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
    for (int box = 0; box < P::subtile_boxes; ++box)
      store_box(args_.hidden, buffers[0] + box * kBoxBytes, tile, tile.n + box * 64, 0,
                args_.hidden_to, args_.n);
    wait_read();
    release(0);
    release(1);
  }

  static __device__ uint32_t hidden(uint32_t gates, uint32_t ups, float w) {
    const float2 gate = unpack_bf16(gates), up = unpack_bf16(ups);
    return pack_bf16(swiglu<Bf16>(gate.x, up.x, w), swiglu<Bf16>(gate.y, up.y, w));
  }

  const GroupedArguments& args_;
  typename P::Storage& s_;
  int consumer_, lane_;
  PipelineState<2> out_;
};

}  // namespace mixtral::cuda
