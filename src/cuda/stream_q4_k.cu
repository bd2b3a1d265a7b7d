#include "cuda/stream_launch.cuh"

// Streamed products of weights in 4-bit super-blocks, GGUF's Q4_K.
namespace mixtral::cuda {

template void launch_stream<StreamCodec::q4_k, Bf16>(StreamTask<Bf16>, const StreamRun&);

}  // namespace mixtral::cuda
