#include <cuda_fp8.h>

#include "cuda/aligned.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/grouped_launch.cuh"
#include "cuda/scaled_product.h"
#include "cuda/scratch.h"
#include "ops/format_fp8.h"

// Products of e4m3 by e4m3 (grouped_kernel.cuh with Tile = Scaled). x is rounded into scratch
// memory first, with one scale a row. The weight has one scale for each 128 numbers of a row, which
// are copied with its codes.
namespace mixtral::cuda {
namespace {

constexpr int kRoundThreads = 128;
constexpr int kRoundPack = 8;  // elements of a thread at a time

/// Four codes in a word.
__device__ inline uint32_t pack_e4m3(const float* values) {
  const auto pair = [&](int i) {
    return static_cast<uint32_t>(
        __nv_cvt_float2_to_fp8x2(make_float2(values[i], values[i + 1]), __NV_SATFINITE, __NV_E4M3));
  };
  return pair(0) | pair(2) << 16;
}

/// A block a row, as ops::round_to_e4m3: the largest magnitude first, and then the codes. The
/// second reading comes from a cache.
__global__ void __launch_bounds__(kRoundThreads)
    round_rows(const Bf16* x, uint8_t* codes, float* scales, int columns) {
  constexpr int kStep = kRoundThreads * kRoundPack;
  const int64_t row = blockIdx.x;
  const Bf16* from = x + row * columns;
  const int first = static_cast<int>(threadIdx.x) * kRoundPack;
  float largest = 0;
  for (int c = first; c < columns; c += kStep) {
    float values[kRoundPack];
    load(from + c, values);
#pragma unroll
    for (int i = 0; i < kRoundPack; ++i) largest = fmaxf(largest, fabsf(values[i]));
  }
  largest = block_reduce(largest, Max{});
  // A row with an infinity has no scale; a NaN's code is NaN itself.
  const float scale = largest == 0 ? 1.0f
                      : largest < INFINITY
                          ? __uint_as_float(ops::fp8_scale_bits(__float_as_uint(largest)))
                          : NAN;
  if (threadIdx.x == 0) scales[row] = scale;
  const float inverse = 1 / scale;  // exact: a power of two
  for (int c = first; c < columns; c += kStep) {
    float values[kRoundPack];
    load(from + c, values);
#pragma unroll
    for (int i = 0; i < kRoundPack; ++i) values[i] *= inverse;
    *reinterpret_cast<uint2*>(codes + row * columns + c) = {pack_e4m3(values),
                                                            pack_e4m3(values + 4)};
  }
}

/// What both products have: the operands. x is rounded here.
GroupedArguments arguments_of(const ops::Weight& weight, const Tensor& x, const Tensor& offsets,
                              Scratch& scratch, cudaStream_t stream) {
  const int64_t rows = x.dim(0), inputs = x.dim(1), all = weight.groups() * weight.outputs();
  auto* codes = scratch.take<uint8_t>(rows * inputs);
  auto* scales = scratch.take<float>(rows);
  round_rows<<<blocks(rows), kRoundThreads, 0, stream>>>(data<Bf16>(x), codes, scales,
                                                         static_cast<int>(inputs));
  check_launch("rounding activations");
  GroupedArguments args{};
  constexpr int half = Scaled::columns / 2;
  args.left = map_of(codes, Dtype::u8, {inputs, rows}, {inputs}, {kScaleBlock, 64});
  args.right = map_of(weight.codes.data(), Dtype::u8, {inputs, all}, {inputs}, {kScaleBlock, half});
  args.scales = map_of(weight.scales.data(), Dtype::f32, {inputs / kScaleBlock, all},
                       {inputs / kScaleBlock}, {kScalesOfRow, half}, CU_TENSOR_MAP_SWIZZLE_NONE);
  args.row_scales = scales;
  args.offsets = data<int>(offsets);
  args.groups = static_cast<int>(weight.groups()), args.all_rows = static_cast<int>(rows);
  args.k = static_cast<int>(inputs);
  return args;
}

}  // namespace

bool fits_scaled(const ops::GroupedMatmul& op) {
  static_assert(ops::WeightFormat::fp8.row().block == kScaleBlock);
  const ops::Weight& weight = op.weight;
  // TMA's rows begin at multiples of 16 bytes: of the weight's scales, every fourth.
  return op.operands == ops::Operands::fp8 && weight.format == ops::WeightFormat::fp8 &&
         weight.layout == ops::WeightLayout::rows && op.x.dtype() == Dtype::bf16 &&
         op.y.dtype() == Dtype::bf16 && !op.accumulate && weight.outputs() > 0 &&
         weight.inputs() > 0 && weight.inputs() % (kScaleBlock * kScalesOfRow) == 0 &&
         weight.outputs() % 8 == 0 && op.y.dim(1) % 8 == 0 && op.y_begin % 8 == 0 &&
         aligned(op.x) && aligned(op.y) && aligned(weight.codes) && aligned(weight.scales);
}

bool scaled_product(const ops::GroupedMatmul& op, Scratch& scratch, cudaStream_t stream) {
  if (!fits_scaled(op)) return false;
  const int64_t outputs = op.weight.outputs(), stride = op.y.dim(1);
  GroupedArguments args = arguments_of(op.weight, op.x, op.offsets, scratch, stream);
  args.scale = static_cast<float>(op.scale);
  args.n = static_cast<int>(outputs);
  args.to = data<Bf16>(op.y) + op.y_begin, args.to_stride = stride;
  args.result = result_map(args.to, op.x.dim(0), 1, outputs, stride);
  launch<GroupedPlan<Form::forward, Finish::assign, Scaled>>(args, stream);
  return true;
}

bool scaled_product(const ops::GroupedMatmulSwiGlu& op, Scratch& scratch, cudaStream_t stream) {
  const int64_t rows = op.x.dim(0), width = op.h.dim(1);
  if (op.offsets.empty() || !fits_scaled(op.product()) || width % 8 != 0 || !aligned(op.h))
    return false;
  GroupedArguments args = arguments_of(op.weight, op.x, op.offsets, scratch, stream);
  args.scale = 1;
  args.n = static_cast<int>(width);
  if (op.keep_gate_up) {
    args.to = data<Bf16>(op.gate_up), args.to_stride = 2 * width;
    args.result = result_map(args.to, rows, 2, width, 2 * width);
  }
  args.hidden_to = data<Bf16>(op.h);
  args.hidden = result_map(args.hidden_to, rows, 1, width, width);
  args.weights = data<float>(op.weights), args.source = data<int>(op.source);
  launch<GroupedPlan<Form::forward, Finish::gate, Scaled>>(args, stream);
  return true;
}

}  // namespace mixtral::cuda
