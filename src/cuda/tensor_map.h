#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "cuda/status.h"
#include "tensor/tensor.h"

namespace mixtral::cuda {

inline constexpr const char* kTensorMap = "a tensor map";

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, which is not linked.
inline EncodeTensorMap encoder() {
  static const EncodeTensorMap encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found),
               kTensorMap);
    if (found != cudaDriverEntryPointSuccess)
      throw Error(
          "the CUDA driver is too old: it has no cuTensorMapEncodeTiled, which came with 12.0");
    return reinterpret_cast<EncodeTensorMap>(function);
  }();
  return encode;
}

/// A tensor map, by which TMA copies boxes of a tensor. Sizes and box are given from the innermost
/// dimension on; strides, of all other dimensions, in elements. Elements outside the tensor are
/// read as zeros and not written.
inline CUtensorMap map_of(const void* data, Dtype dtype, std::initializer_list<int64_t> sizes,
                          std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                          CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  CUtensorMap map;
  const int64_t element = size_of(dtype);
  std::array<cuuint64_t, 3> size{}, stride{};
  std::array<cuuint32_t, 3> boxes{}, steps{1, 1, 1};
  std::copy(sizes.begin(), sizes.end(), size.begin());
  std::copy(box.begin(), box.end(), boxes.begin());
  std::transform(strides.begin(), strides.end(), stride.begin(),
                 [&](int64_t elements) { return static_cast<cuuint64_t>(elements * element); });
  const CUresult result =
      encoder()(&map,
                dtype == Dtype::f32  ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                : dtype == Dtype::u8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(data), size.data(),
                stride.data(), boxes.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(std::string(kTensorMap) + ": the driver refused a tensor map, error " +
                std::to_string(static_cast<int>(result)));
  return map;
}

}  // namespace mixtral::cuda
