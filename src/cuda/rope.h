#pragma once

#include <cuda_runtime_api.h>

#include "ops/attention.h"
#include "ops/kv_view.h"

namespace mixtral::cuda {

/// Launches Rope alone.
void rotate(const ops::Rope& op, cudaStream_t stream);

/// Whether the append behind it may take the rotation along: few rows of bf16.
bool may_append(const ops::Rope& op);
/// Whether the append reads what the rotation writes, in types that rotate_and_append takes.
bool joins(const ops::Rope& rope, const ops::CacheAppend& append);
/// Both in one launch, with the same bits. `early`: a streamed product is in front, so that the
/// positions and the page table can be read before it has ended.
void rotate_and_append(const ops::Rope& rope, const ops::CacheAppend& append, bool early,
                       cudaStream_t stream);

}  // namespace mixtral::cuda
