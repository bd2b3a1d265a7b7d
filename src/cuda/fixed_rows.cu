#include "cuda/chain.cuh"
#include "cuda/dispatch.h"
#include "cuda/fixed_rows.cuh"
#include "cuda/scratch.h"
#include "cuda/status.h"

namespace mixtral::cuda {
namespace {

constexpr int kFixedThreads = 128;

__global__ void __launch_bounds__(kFixedThreads)
    fix(const Bf16* x, int inputs, bool at_once, const __grid_constant__ FixedRows to) {
  if (at_once) allow_next();
  wait_for_previous();
  if (!at_once) allow_next();
  const int unit = static_cast<int>(blockIdx.x * kFixedThreads + threadIdx.x);
  const int64_t row = blockIdx.y;
  uint4 numbers = {0, 0, 0, 0};
  if (unit * kFixedUnit < inputs)
    numbers = *reinterpret_cast<const uint4*>(x + row * inputs + unit * kFixedUnit);
  fix_unit(numbers, row, unit, unit * kFixedUnit < to.padded, to);
}

}  // namespace

FixedRows make_fixed_rows(int rows, int inputs, const FixedLayout& layout, Scratch& scratch) {
  const int padded = static_cast<int>(divide_up(inputs, layout.pad_columns)) * layout.pad_columns;
  const int64_t groups = int64_t{rows} * padded / 64;
  return {.bytes = scratch.take<char>(int64_t{rows} * 2 * padded),
          .scales = scratch.take<float>(groups),
          .sums = layout.sums > 0 ? scratch.take<float2>(groups * layout.sums) : nullptr,
          .padded = padded,
          .layout = layout};
}

void fix_rows(const Bf16* x, int rows, int inputs, const FixedRows& to, bool at_once,
              cudaStream_t stream) {
  const dim3 grid(blocks(divide_up(to.padded / kFixedUnit, kFixedThreads)), blocks(rows));
  chain(fix, grid, kFixedThreads, 0, stream, x, inputs, at_once, to);
  check_launch("fixed-point rows");
}

}  // namespace mixtral::cuda
