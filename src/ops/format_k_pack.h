#pragma once

#include <span>

#include "ops/weight_format.h"

namespace mixtral::ops {

// Packing into ggml's K types: super-blocks of 256 numbers. What has to be found is the scale (and
// minimum) of each block for which the weighted squared error is least; no rule gives it at once.
//
// `importance`: how much an error in each column matters (the mean square of the activations that
// it is multiplied by, say), or empty: large numbers then count a little more than small ones.
// Without it, they are also rows of kWeightFormats.

void pack_q4_k(std::span<const float> values, std::span<const float> importance, void* to);
void pack_q5_k(std::span<const float> values, std::span<const float> importance, void* to);
void pack_q6_k(std::span<const float> values, std::span<const float> importance, void* to);

}  // namespace mixtral::ops
