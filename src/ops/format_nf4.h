#pragma once

namespace mixtral::ops {

// Weights of 4 bits. A code is one of 16 levels (Dettmers et al. 2023, "QLoRA"); a block of 64
// shares a scale, its largest magnitude. Two codes a byte, the even column's in the low half.

/// The levels of nf4: quantiles of the normal distribution, made to span [-1, 1] and to contain 0.
inline constexpr float kNormalLevels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

/// The number halfway between levels i and i + 1, in f32. A level is nearest to what lies above the
/// midpoint below it and not above the midpoint above it: ties go down.
constexpr float normal_midpoint(int i) { return (kNormalLevels[i] + kNormalLevels[i + 1]) * 0.5f; }

}  // namespace mixtral::ops
