#pragma once

#include <cuda_runtime_api.h>

#include "cuda/stream_task.h"
#include "ops/weight.h"

namespace mixtral::cuda {

struct StreamRun {
  const ops::Weight& weight;
  bool grouped, gated;  // with offsets; with SwiGLU
  int processors;
  const FixedRows* fixed;  // x in fixed point, where it already is
  Scratch& scratch;
  cudaStream_t stream;
};

/// Launches the kernel that a task's format and shape ask for. Each format is compiled by itself.
template <StreamCodec codec, class Y>
void launch_stream(StreamTask<Y> task, const StreamRun& run);

}  // namespace mixtral::cuda
