#pragma once

#include <memory>
#include <string_view>

#include "ops/block_rounder.h"

namespace mixtral::ops {

/// Rounds a row of q4_0, q5_0 or q8_0 number by number and writes it to `to`; null for any other
/// format. Unit and block are 32 numbers, whose scale is searched for; pack_q4_0 and its like
/// (weight_format.h) take the scale of ggml's reference.
std::unique_ptr<BlockRounder> make_q_rounder(std::string_view format, void* to);

}  // namespace mixtral::ops
