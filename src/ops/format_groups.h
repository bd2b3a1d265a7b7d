#pragma once

#include <span>

namespace mixtral::ops {

// Groups of numbers along a row with codes of 4 or 8 bits and a scale and a minimum in 16 bits:
// value = code * scale + minimum. Codes of 4 bits stand two a byte, the even column's in the low
// half, so that four bytes of them are a word of MLX.

/// The scale and the minimum of a group, as MLX chooses them (mlx/backend/cpu/quantized.cpp): a
/// code stands for the value of largest magnitude and, where it is within reach, another for 0.
/// `most` is the largest code.
struct GroupScale {
  float scale = 0, minimum = 0;
};
GroupScale group_scale(std::span<const float> group, int most);

}  // namespace mixtral::ops
