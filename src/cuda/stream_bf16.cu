#include "cuda/stream_launch.cuh"

// Streamed products of weights in bf16.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::bf16, Bf16>(StreamTask<Bf16>, const StreamRun&);
template void launch_stream<StreamCodec::bf16, float>(StreamTask<float>, const StreamRun&);

}  // namespace mixtral::cuda
