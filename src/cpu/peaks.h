#pragma once

namespace mixtral::cpu {

/// Operations a second that `threads` threads reach with operands in registers: what the kernels'
/// shares are of. A multiply-add counts as two.
struct Peaks {
  double f32 = 0;   // fused multiply-adds
  double bf16 = 0;  // dot products of pairs where products of bf16 take them, else f32's
  double int8 = 0;  // dot products of codes, as the integer kernels compute them, or 0
};

/// Warms the clock up, then takes the best of several short runs; takes about half a second.
Peaks measure_peaks(int threads);

}  // namespace mixtral::cpu
