#include "cuda/stream_launch.cuh"

// Streamed products of weights in nf4.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::nf4, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
