#pragma once

#include <cuda_runtime_api.h>

#include <optional>

#include "cuda/fixed_rows.h"
#include "ops/moe.h"

namespace mixtral::cuda {

/// Rows of x that stream_product is meant for: with more, tensor cores are bound by arithmetic and
/// other kernels are faster. Those of dense weights take over sooner: they need not unpack them.
inline constexpr int64_t kStreamRows = 32, kStreamDenseRows = 16, kStreamGroupedRows = 64;

/// Whether stream_product takes a product of so many rows by this weight.
bool streams(const ops::Weight& weight, const Tensor& x, bool grouped);

/// How x may be given in fixed point to a product of one group that stream_product takes, or none.
std::optional<FixedLayout> fixed_layout(const ops::GroupedMatmul& op);

/// Forward products of few rows, as in decoding, by a weight in any format that `streams` names:
/// bound by reading the weights, each of them once. False when it does not take the product.
/// `settled`: the kernel in front was launched with `chain` and writes neither weights nor offsets,
/// so that these can be read before it has ended. `fixed`: x, or null.
bool stream_product(const ops::GroupedMatmul& op, bool settled, int processors,
                    const FixedRows* fixed, Scratch& scratch, cudaStream_t stream);
/// The same with SwiGlu behind it, in one kernel. gate_up is not written.
bool stream_product(const ops::GroupedMatmulSwiGlu& op, bool settled, int processors,
                    Scratch& scratch, cudaStream_t stream);

}  // namespace mixtral::cuda
