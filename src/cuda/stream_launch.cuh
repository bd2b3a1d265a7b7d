#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/aligned.h"
#include "cuda/chain.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"
#include "cuda/stream_kernel.cuh"
#include "cuda/stream_launch.h"
#include "cuda/tensor_map.h"

namespace mixtral::cuda {

/// Whether the words of scales of each step are side by side, at an address that is a multiple of
/// what they come to, and so can be copied at once. Where minima stand apart, TMA must be able to
/// copy both.
template <StreamCodec codec>
bool has_wide_scales(const ops::Weight& weight, int scale_words) {
  using Traits = StreamTraits<codec>;
  if constexpr (Traits::kPlanes) return true;
  constexpr int kWords = Traits::kScaleWords, kScalesOfWord = Traits::kMinima ? 2 : 1;
  constexpr int kAligned = Traits::kMinima ? 4 : kWords;
  return weight.format.row().block * kWords * kScalesOfWord == 2 * Traits::kColumns &&
         scale_words % kAligned == 0 && aligned(weight.scales, 4 * kAligned) &&
         aligned(weight.minima, 4 * kAligned);
}

template <StreamCodec codec, int tiles, int rows, bool gated, bool wide, class Y>
void start_stream(StreamTask<Y>& task, const StreamRun& run) {
  using Shape = StreamShape<codec, tiles, rows, wide>;
  constexpr int kTileRows = gated ? 8 : 16;  // of one part of the weights
  if constexpr (Shape::kBoxes)
    task.codes =
        map_of(run.weight.codes.data(), Dtype::u8, {task.code_bytes, run.weight.rows()},
               {run.weight.codes.dim(1)}, {kStreamStepBytes, kTileRows * Shape::kTogether});
  const auto kernel = stream<codec, tiles, rows, gated, wide, Y>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes),
      "grouped_matmul");
  // At most one item a tile, group and chunk of rows.
  const int64_t chunks = divide_up(task.rows, rows) + std::min(task.groups, task.rows);
  const int64_t items = chunks * divide_up(task.outputs, (gated ? 8 : 16) * tiles);
  const int64_t most = int64_t{run.processors} * Shape::kBlocks;
  const auto launch = [&](const auto& whole) {
    chain(kernel, dim3(blocks(std::min(items, most))), Shape::kThreads, Shape::kBytes, run.stream,
          whole);
  };
  if constexpr (Shape::kChunks) {
    using Traits = StreamTraits<codec>;
    // In planes, scales are behind the codes of their row.
    const int64_t bytes = task.scale_stride - (Traits::kPlanes ? task.code_bytes : 0);
    const auto chunks_of = [&](const char* scales) {
      return map_of(scales, Dtype::u8, {bytes, run.weight.rows()}, {task.scale_stride},
                    {Shape::kChunkBytes, kTileRows * tiles});
    };
    if constexpr (Traits::kMinima)
      launch(ChunkedStreamTask<Y, 2>{task, {chunks_of(task.scales), chunks_of(task.minima)}});
    else
      launch(ChunkedStreamTask<Y, 1>{task, {chunks_of(task.scales)}});
  } else {
    launch(task);
  }
}

/// Items of two tiles of weights, or of one where those would be too few for all teams.
template <int rows, StreamCodec codec, bool gated, bool wide, class Y>
void start_stream_of(StreamTask<Y>& task, const StreamRun& run) {
  if constexpr (!gated)
    if (!run.grouped && 2 * divide_up(task.outputs, 32) <=
                            int64_t{run.processors} * StreamShape<codec, 1, rows, wide>::kAllTeams)
      return start_stream<codec, 1, rows, gated, wide>(task, run);
  start_stream<codec, 2, rows, gated, wide>(task, run);
}

/// Chooses how many tiles of weights and of rows of x an item has. A group of several has a share
/// of the rows. Two tiles of weights share what is done for x.
template <StreamCodec codec, bool gated, bool wide, class Y>
void start_stream(StreamTask<Y>& task, const StreamRun& run) {
  using Traits = StreamTraits<codec>;
  if constexpr (Traits::kInteger)
    if (task.rows <= 4) return start_stream_of<4, codec, gated, wide>(task, run);
  if (task.rows <= (run.grouped ? 32 : 8)) {
    if constexpr (Traits::kScaled)
      return start_stream_of<8, codec, gated, wide>(task, run);
    else
      return start_stream<codec, 1, 8, gated, wide>(task, run);
  }
  if constexpr (Traits::kScaled && !gated)
    if (!run.grouped && task.rows > 16) return start_stream<codec, 2, 32, gated, wide>(task, run);
  start_stream<codec, 2, 16, gated, wide>(task, run);
}

// Policies of the second-level cache, as createpolicy.fractional makes them for all lines.
constexpr uint64_t kEvictNormal = 0x1000000000000000, kEvictFirst = 0x12f0000000000000;

template <StreamCodec codec, class Y>
void launch_stream(StreamTask<Y> task, const StreamRun& run) {
  using Traits = StreamTraits<codec>;
  // No step reads weights twice. So the second-level cache gives their lines up first, and keeps
  // what the small kernels between the products read, their code too. By more than four rows, fp8
  // and integers were measured to be slower with it.
  const bool kept = (Traits::kFp8 || Traits::kInteger) && task.rows > 4;
  task.policy = kept ? kEvictNormal : kEvictFirst;
  if constexpr (Traits::kInteger) {
    if (run.fixed) {
      task.fixed = *run.fixed;
    } else {
      task.fixed = make_fixed_rows(task.rows, task.inputs, kFixedLayout<codec>, run.scratch);
      // What the product may read before the kernel in front has ended, it may read before this one
      // begins. With many rows that was measured to be slower.
      const bool at_once = task.early && task.rows < 32;
      fix_rows(task.x, task.rows, task.inputs, task.fixed, at_once, run.stream);
      task.early = true;
    }
  }
  const auto start = [&](auto wide) {
    if constexpr (std::is_same_v<Y, Bf16>)
      if (run.gated) return start_stream<codec, true, wide()>(task, run);
    start_stream<codec, false, wide()>(task, run);
  };
  if constexpr (Traits::kScaled)
    if (has_wide_scales<codec>(run.weight, task.scale_words)) return start(std::true_type{});
  if constexpr (!Traits::kPlanes) start(std::false_type{});
}

}  // namespace mixtral::cuda
