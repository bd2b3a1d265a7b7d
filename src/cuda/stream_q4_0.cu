#include "cuda/stream_launch.cuh"

// Streamed products of weights in 4-bit blocks, GGUF's Q4_0.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::q4_0, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
