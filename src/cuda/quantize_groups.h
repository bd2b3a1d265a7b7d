#pragma once

#include <cuda_runtime_api.h>

#include "ops/quantize.h"

namespace mixtral::cuda {

/// Whether a format is of those that these pack and unpack: integers of 4 or 8 bits in groups.
bool in_groups(ops::WeightFormat format);

void quantize_groups(const ops::Quantize& op, int processors, cudaStream_t stream);
/// Unpacks `groups` matrices of the weight; those without rows, by `offsets`, are left out.
void dequantize_groups(const ops::Dequantize& op, int64_t groups, int processors,
                       cudaStream_t stream);

}  // namespace mixtral::cuda
