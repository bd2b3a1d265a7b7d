#include "cuda/stream_launch.cuh"

// Streamed products of weights in fp8.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::fp8, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
