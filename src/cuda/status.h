#pragma once

#include <cuda_runtime_api.h>

namespace mixtral::cuda {

/// Throws Error with `what` and CUDA's own message unless the call succeeded. Errors of earlier
/// asynchronous work can surface here too.
void check_cuda(cudaError_t status, const char* what);

/// To be called after every kernel launch, with the op's name.
inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op); }

}  // namespace mixtral::cuda
