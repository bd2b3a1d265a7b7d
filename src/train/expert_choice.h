#pragma once

#include <vector>

#include "model/mixtral.h"
#include "train/batch_source.h"

namespace mixtral {

/// The `top` experts of each layer that most tokens of up to `batches` batches of `source` go to,
/// the busiest first (of equals the lower number). Rewinds the source before and after.
std::vector<std::vector<int64_t>> busiest_experts(Context& ctx, const Mixtral& model,
                                                  BatchSource& source, int64_t batches,
                                                  int64_t top);

}  // namespace mixtral
