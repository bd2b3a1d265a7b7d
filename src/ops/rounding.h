#pragma once

#include <span>

#include "ops/weight_format.h"

/// The rounding of activations: the scalar reference of Operands::as_weight and Operands::fp8.
namespace mixtral::ops {

/// Below it, a block's magnitudes are rounded to 0: 127 / magnitude must be finite.
inline constexpr float kLeastRounded = 0x1p-100f;

/// Elements of x that share a scale beside a weight of this format; 0: its codes are no whole
/// numbers, and x stays exact.
int activation_block(WeightFormat format);

/// Rounds a row to multiples of a scale a block: with the block's largest magnitude m, the scale is
/// m / 127, and a number becomes the whole number nearest to x · (127 / m), ties to even, times the
/// scale. All in f32. A block with a number that is not finite becomes NaN. `rounded` may be `row`.
void round_to_integers(std::span<const float> row, int block, std::span<float> rounded);

/// Rounds a row to e4m3 with one scale, as format fp8 rounds a block (ops/format_fp8.h): the scalar
/// reference of Operands::fp8. A row with an infinity becomes NaN. `rounded` may be `row`.
void round_to_e4m3(std::span<const float> row, std::span<float> rounded);

}  // namespace mixtral::ops
