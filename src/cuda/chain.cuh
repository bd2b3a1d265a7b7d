#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "cuda/status.h"

/// Programmatic dependent launch: kernels that follow each other closely, as in decoding, where the
/// gaps between launches would take longer than many a kernel. A kernel that is launched with
/// `chain` may begin before the one in front of it has ended. So each of its threads calls
/// wait_for_previous before it touches anything that an earlier kernel writes or reads, constant
/// weights excepted: then that kernel has ended, which did so behind the ones in front of it.
/// With allow_next it lets the kernel behind it begin. Small kernels do so first of all: a product
/// behind them then reads its weights while they run. Kernels behind which a product may read a
/// router's offsets early (see stream_product) do it after the wait, so that everything in front of
/// them has ended by then.
namespace mixtral::cuda {

__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void allow_next() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/// `cluster`: so many blocks, neighbours in z, form a cluster.
template <class... Parameters, class... Arguments>
void chain_clusters(void (*kernel)(Parameters...), dim3 grid, unsigned cluster, unsigned threads,
                    size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  // One division of the memory beside the multiprocessors for all of these kernels: changing it
  // would make each wait until the kernel in front has left. 196 of 228 KB for shared memory.
  constexpr unsigned kSharedPercent = 86;
  cudaLaunchAttribute attributes[3] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = kSharedPercent;
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim = {1, 1, cluster};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 3 : 2;
  check_cuda(cudaLaunchKernelEx(&config, kernel,
                                static_cast<Parameters>(std::forward<Arguments>(arguments))...),
             "a launch");
}

template <class... Parameters, class... Arguments>
void chain(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes,
           cudaStream_t stream, Arguments&&... arguments) {
  chain_clusters(kernel, grid, 1, threads, shared_bytes, stream,
                 std::forward<Arguments>(arguments)...);
}

}  // namespace mixtral::cuda
