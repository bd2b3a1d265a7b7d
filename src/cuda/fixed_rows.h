#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mixtral::cuda {

class Scratch;

/// How fixed-point rows are laid out for the codes that they are multiplied by.
struct FixedLayout {
  int bits;         // of the codes. 4: of each 8 columns those with even numbers are first, and
                    // scales are for codes times 16
  bool planes;      // units of 8 columns take turns as in ops/block_planes.h
  int sums;         // in 64 columns: 0, 1 or 2
  int pad_columns;  // rows are padded to a multiple of these
};

/// Rows of x in fixed point. Each 64 columns of a row share a power of two, and a number is an
/// integer of 15 bits: 256 · high + low, each a byte with a sign. So a number of bf16 is exact
/// where it is at least 2^-6 of the largest of its 64, and off by at most 2^-14 of that elsewhere.
/// A NaN or an infinity makes the scale of its 64 columns NaN.
struct FixedRows {
  char* bytes;    // [rows, padded / 64, 2, 64]: high bytes, then low ones
  float* scales;  // [rows, padded / 64]
  float2* sums;   // [rows, padded / 64, layout.sums]: of the numbers, or null. A sum is x + y, and
                  // x is exact as tf32
  int padded;     // columns: zeros behind a row's end
  FixedLayout layout;
};

/// Room for rows of `inputs` columns in scratch memory.
FixedRows make_fixed_rows(int rows, int inputs, const FixedLayout& layout, Scratch& scratch);

/// Fills them with x [rows, inputs]. `inputs` is a multiple of 8, x aligned to 16 bytes. The kernel
/// behind may begin at once, or when everything in front has ended (see chain.cuh).
void fix_rows(const __nv_bfloat16* x, int rows, int inputs, const FixedRows& to, bool at_once,
              cudaStream_t stream);

}  // namespace mixtral::cuda
