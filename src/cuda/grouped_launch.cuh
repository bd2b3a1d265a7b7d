#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "cuda/grouped_kernel.cuh"
#include "cuda/status.h"
#include "cuda/tensor_map.h"

// The host's part of the grouped kernel: tensor maps, and the launch.
namespace mixtral::cuda {

inline constexpr const char* kGroupedOp = "grouped_matmul";

/// An operand in bf16: a matrix whose rows are `stride` apart, in boxes of 64 columns.
inline CUtensorMap operand_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                               int box_rows) {
  return map_of(data, Dtype::bf16, {columns, rows}, {stride}, {64, box_rows});
}

/// A result: the same, with its columns in halves side by side.
inline CUtensorMap result_map(const void* data, int64_t rows, int64_t halves, int64_t columns,
                              int64_t stride) {
  return map_of(data, Dtype::bf16, {columns, halves, rows}, {columns, stride}, {64, 1, 64});
}

inline int processor_count() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), kGroupedOp);
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), kGroupedOp);
  return count;
}

template <class P>
void launch(const GroupedArguments& args, cudaStream_t stream) {
  // For each device: the limit of shared memory is set for one at a time.
  static std::array<std::atomic<unsigned>, 64> blocks_of{};
  int device = 0;
  check_cuda(cudaGetDevice(&device), kGroupedOp);
  CHECK(device < static_cast<int>(blocks_of.size()));
  std::atomic<unsigned>& blocks = blocks_of[static_cast<size_t>(device)];
  if (blocks == 0) {
    check_cuda(cudaFuncSetAttribute(grouped_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    P::shared_bytes),
               kGroupedOp);
    int clusters = 0;
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(processor_count() / P::cluster * P::cluster);
    config.blockDim = kGroupedThreads;
    config.dynamicSmemBytes = P::shared_bytes;
    check_cuda(cudaOccupancyMaxActiveClusters(&clusters, grouped_kernel<P>, &config), kGroupedOp);
    CHECK(clusters > 0);
    blocks = static_cast<unsigned>(clusters * P::cluster);
  }
  grouped_kernel<P><<<blocks.load(), kGroupedThreads, P::shared_bytes, stream>>>(args);
  check_launch(kGroupedOp);
}

/// Whether TMA can copy these matrices: every row of each must begin at a multiple of 16 bytes.
inline bool fits_tma(std::initializer_list<const void*> data,
                     std::initializer_list<int64_t> sizes) {
  return std::all_of(data.begin(), data.end(),
                     [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }) &&
         std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size % 8 == 0; });
}

}  // namespace mixtral::cuda
