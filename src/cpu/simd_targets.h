#pragma once

// The instruction sets that the ops' kernels are compiled for: AVX2 and AVX-512 on x86, plain code
// below them; NEON on ARM (vectors of unknown size cannot be struct members). Include before
// Highway.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
