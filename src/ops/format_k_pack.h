#pragma once

#include <memory>
#include <string_view>

#include "ops/block_rounder.h"

namespace mixtral::ops {

// Packing into ggml's K types: super-blocks of 256 numbers. What has to be found is the scale (and
// minimum) of each block for which the weighted squared error is least; no rule gives it at once.
// Whole rows are packed by pack_q4_k, pack_q5_k and pack_q6_k (weight_format.h).

/// Rounds a row of q4_k, q5_k or q6_k number by number and writes it to `to`; null for any other
/// format. A unit is a super-block.
std::unique_ptr<BlockRounder> make_k_rounder(std::string_view format, void* to);

}  // namespace mixtral::ops
