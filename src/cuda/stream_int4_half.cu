#include "cuda/stream_launch.cuh"

// Streamed products of weights in 4-bit integers, with scales in f16.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::int4_half, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
