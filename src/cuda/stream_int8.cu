#include "cuda/stream_launch.cuh"

// Streamed products of weights in 8-bit integers, with scales in bf16.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::int8, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
