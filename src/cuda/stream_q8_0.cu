#include "cuda/stream_launch.cuh"

// Streamed products of weights in 8-bit blocks, GGUF's Q8_0.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::q8_0, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
