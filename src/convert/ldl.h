#pragma once

#include "base/threads.h"
#include "ops/context.h"

namespace mixtral {

/// Factors a symmetric positive definite matrix a [n, n] in f32 in place: a = L D Lᵀ. Only the
/// lower triangle is read. D stands on the diagonal, L below it (its diagonal is 1);
/// what is above is undefined. Pivots below `least` become `least`, so that rounding errors in a
/// nearly singular matrix do no harm. The context's backend computes in ordinary memory.
void factor_ldl(Context& ctx, ThreadPool& threads, const Tensor& a, float least);

}  // namespace mixtral
