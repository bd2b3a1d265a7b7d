#pragma once

#include <cuda_runtime_api.h>

#include "ops/quantize.h"

namespace mixtral::cuda {

/// Whether a format is of those of GGUF that these take: codes of 4 or 8 bits behind a header, in
/// plain rows or in planes (ops/block_planes.h).
bool in_blocks(ops::WeightFormat format);

/// q8_0 and q4_0, into plain rows.
void quantize_blocks(const ops::Quantize& op, cudaStream_t stream);
/// Unpacks `groups` matrices of the weight; those without rows, by `offsets`, are left out.
void dequantize_blocks(const ops::Dequantize& op, int64_t groups, cudaStream_t stream);

/// Brings every row of a weight from plain rows to planes, or back, in its place. False where a row
/// is too long.
bool change_planes(const ops::Weight& weight, ops::WeightLayout to, int processors,
                   cudaStream_t stream);

}  // namespace mixtral::cuda
