#pragma once

#include <cuda_runtime_api.h>

#include "cuda/fixed_rows.h"
#include "ops/moe.h"
#include "ops/norm.h"

namespace mixtral::cuda {

/// Launches CombineRows alone.
void combine_rows(const ops::CombineRows& op, cudaStream_t stream);

/// Rows of a step that norm_few takes.
inline constexpr int64_t kFewNormRows = 64;

/// Whether norm_few can take the op, by its shapes and types.
bool is_few(const ops::CombineRows& op);
bool is_few(const ops::RmsNorm& op);
/// Whether an op can be computed with those before it, whose results it reads: the norm of combined
/// rows, the router's logits of normalised ones, the experts of one token, and its rows for these.
bool joins(const ops::CombineRows& rows, const ops::RmsNorm& norm);
bool joins(const ops::RmsNorm& norm, const ops::GroupedMatmul& router);
bool joins(const ops::GroupedMatmul& router, const ops::Route& route);
bool joins(const ops::RmsNorm& norm, const ops::Route& route, const ops::GatherRows& rows);
/// Whether the norm can also make fixed-point rows of x.
bool joins(const ops::RmsNorm& norm, const Tensor& x, const FixedLayout& layout);

/// A norm and what joins it, in one launch; the others may be null, and each needs the one before
/// it in this order: router, route, gather. `fixed`: the result in fixed point, or null. All
/// results are written, with the bits that the ops have one by one, logits excepted, which are
/// summed in another order.
void norm_few(const ops::RmsNorm& norm, const ops::CombineRows* combine,
              const ops::GroupedMatmul* router, const ops::Route* route,
              const ops::GatherRows* gather, const FixedRows* fixed, cudaStream_t stream);

}  // namespace mixtral::cuda
