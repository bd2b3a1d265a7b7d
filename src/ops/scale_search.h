#pragma once

#include <cstddef>

namespace mixtral::ops {

// Searches for the scales of a block: many are tried, and the one of the least weighted squared
// error is taken. A trial is a vector's lane and adds up its errors in the order of the numbers. So
// the result does not depend on the instruction set.
//
// `x` are the block's numbers; the squared error of each counts `w`.

constexpr size_t kAffineBlock = 32;  // numbers of a block with a minimum

/// Numbers as scale * code - minimum, with codes from 0 and minimum >= 0.
struct AffineScale {
  float scale = 0, minimum = 0;
};

/// Scale and minimum for 32 numbers, with codes up to `levels`. A few steps around
/// (max - min) / levels are tried; of each, the codes give the best scale and minimum by weighted
/// least squares.
AffineScale search_affine(const float* x, const float* w, int levels);

/// 1 / scale, and 0 for a scale of 0.
inline float inverse(float scale) { return scale != 0 ? 1 / scale : 0; }

/// Sums over a block's numbers x and their codes q, each weighted by w.
struct AffineSums {
  float w = 0, x = 0, q = 0, qq = 0, xq = 0;
};

/// The sums of a block's numbers under a scale and minimum.
AffineSums affine_sums(const float* x, const float* w, int levels, AffineScale scale);

/// One of several trials, and its weighted squared error.
struct Trial {
  size_t place;
  float error;
};

/// The best of up to 16 trials, the first of equals.
Trial best_affine(const float* x, const float* w, int levels, const AffineScale* trials,
                  size_t count);

/// A block of numbers as scale * (code - zero), with codes from 0 to 2 zero - 1.
struct SignedBlock {
  size_t size;
  int zero;
};

/// The nearest code of a number under a scale.
int signed_code(SignedBlock block, float x, float scale);

/// The scale of a block, likewise: steps around max / zero are tried, which is wide enough that the
/// grid's place under the other large numbers counts too. It is negative where that puts the
/// largest number at the side that has one code more.
float search_signed(SignedBlock block, const float* x, const float* w);

/// The best of up to 16 scales, the first of equals.
Trial best_signed(SignedBlock block, const float* x, const float* w, const float* trials,
                  size_t count);

}  // namespace mixtral::ops
