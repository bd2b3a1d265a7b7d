#include <algorithm>
#include <array>
#include <atomic>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "cuda/dispatch.h"
#include "cuda/grouped.h"
#include "cuda/grouped_kernel.cuh"
#include "cuda/scratch.h"
#include "cuda/status.h"

namespace mixtral::cuda {
namespace {

constexpr const char* kOp = "grouped_matmul";

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, which is not linked.
Encode encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found),
               kOp);
    if (found != cudaDriverEntryPointSuccess)
      throw Error(
          "the CUDA driver is too old: it has no cuTensorMapEncodeTiled, which came with 12.0");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

/// A tensor map, by which TMA copies boxes of a tensor. Sizes and box are given from the innermost
/// dimension on; strides, of all other dimensions, in elements. Elements outside the tensor are
/// read as zeros and not written.
CUtensorMap map_of(const void* data, Dtype dtype, std::initializer_list<int64_t> sizes,
                   std::initializer_list<int64_t> strides, std::initializer_list<int> box) {
  CUtensorMap map;
  const int64_t element = size_of(dtype);
  std::array<cuuint64_t, 3> size{}, stride{};
  std::array<cuuint32_t, 3> boxes{}, steps{1, 1, 1};
  std::copy(sizes.begin(), sizes.end(), size.begin());
  std::copy(box.begin(), box.end(), boxes.begin());
  std::transform(strides.begin(), strides.end(), stride.begin(),
                 [&](int64_t elements) { return static_cast<cuuint64_t>(elements * element); });
  const CUresult result = encoder()(
      &map,
      dtype == Dtype::f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(data), size.data(), stride.data(),
      boxes.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(std::string(kOp) + ": the driver refused a tensor map, error " +
                std::to_string(static_cast<int>(result)));
  return map;
}

/// An operand: a matrix whose rows are `stride` apart, in boxes of 64 columns.
CUtensorMap operand_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                        int box_rows) {
  return map_of(data, Dtype::bf16, {columns, rows}, {stride}, {64, box_rows});
}

/// A result: the same, with its columns in halves side by side.
CUtensorMap result_map(const void* data, int64_t rows, int64_t halves, int64_t columns,
                       int64_t stride) {
  return map_of(data, Dtype::bf16, {columns, halves, rows}, {columns, stride}, {64, 1, 64});
}

int processors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), kOp);
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), kOp);
  return count;
}

template <class P>
void launch(const GroupedArguments& args, cudaStream_t stream) {
  // For each device: the limit of shared memory is set for one at a time.
  static std::array<std::atomic<unsigned>, 64> blocks_of{};
  int device = 0;
  check_cuda(cudaGetDevice(&device), kOp);
  CHECK(device < static_cast<int>(blocks_of.size()));
  std::atomic<unsigned>& blocks = blocks_of[static_cast<size_t>(device)];
  if (blocks == 0) {
    check_cuda(cudaFuncSetAttribute(grouped_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    P::shared_bytes),
               kOp);
    int clusters = 0;
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(processors() / P::cluster * P::cluster);
    config.blockDim = kGroupedThreads;
    config.dynamicSmemBytes = P::shared_bytes;
    check_cuda(cudaOccupancyMaxActiveClusters(&clusters, grouped_kernel<P>, &config), kOp);
    CHECK(clusters > 0);
    blocks = static_cast<unsigned>(clusters * P::cluster);
  }
  grouped_kernel<P><<<blocks.load(), kGroupedThreads, P::shared_bytes, stream>>>(args);
  check_launch(kOp);
}

template <Form form, class Tile>
void launch_product(const Product& p, cudaStream_t stream) {
  const int box_rows = form == Form::forward ? Tile::columns / 2 : 64;
  const void* left = form == Form::forward ? p.narrow : p.wide;
  GroupedArguments args{};
  args.left = form == Form::forward ? operand_map(left, p.rows, p.inputs, p.inputs, 64)
                                    : operand_map(left, p.rows, p.outputs, p.wide_stride, 64);
  args.right = form == Form::weight
                   ? operand_map(p.narrow, p.rows, p.inputs, p.inputs, box_rows)
                   : operand_map(p.weight, p.groups * p.outputs, p.inputs, p.inputs, box_rows);
  args.offsets = p.offsets;
  args.groups = static_cast<int>(p.groups), args.all_rows = static_cast<int>(p.rows);
  args.scale = static_cast<float>(p.scale);
  const auto outputs = static_cast<int>(p.outputs), inputs = static_cast<int>(p.inputs);
  if constexpr (form == Form::weight) {
    args.m = outputs, args.n = inputs;
    args.result = map_of(p.weight, Dtype::f32, {p.inputs, p.outputs, p.groups},
                         {p.inputs, p.outputs * p.inputs}, {32, 64, 1});
  } else {
    constexpr bool forward = form == Form::forward;
    args.n = forward ? outputs : inputs, args.k = forward ? inputs : outputs;
    args.to = static_cast<Bf16*>(forward ? p.wide : p.narrow);
    args.to_stride = forward ? p.wide_stride : p.inputs;
    args.result = result_map(args.to, p.rows, 1, args.n, args.to_stride);
  }
  if (p.accumulate)
    launch<GroupedPlan<form, Finish::add, Tile>>(args, stream);
  else
    launch<GroupedPlan<form, Finish::assign, Tile>>(args, stream);
}

/// Whether the result has few enough columns for narrow tiles.
bool is_narrow(const Product& p) {
  return (p.form == Form::forward ? p.outputs : p.inputs) <= Narrow::columns;
}

template <Form form>
void launch_product(const Product& p, cudaStream_t stream) {
  if (is_narrow(p))
    launch_product<form, Narrow>(p, stream);
  else
    launch_product<form, Wide>(p, stream);
}

/// The gradient of one small weight has few tiles, each a sum over many rows (split-K): the rows
/// are divided into parts, whose results are added afterwards, in order.
void launch_weight(const Product& p, Scratch& scratch, cudaStream_t stream) {
  const int64_t columns = is_narrow(p) ? Narrow::columns : Wide::columns;
  const int64_t tiles =
      divide_up(p.outputs, int64_t{kTileM}) * divide_up(p.inputs, columns) * p.groups;
  const int64_t parts = std::min(processors() / tiles, p.rows / 512);
  if (p.offsets || parts < 2) return launch_product<Form::weight>(p, stream);
  Product part = p;
  part.groups = parts;
  part.accumulate = false;
  part.weight = scratch.take<float>(parts * p.outputs * p.inputs);
  launch_product<Form::weight>(part, stream);
  auto* total = static_cast<float*>(p.weight);
  const int64_t width = p.outputs * p.inputs;
  if (!p.accumulate)
    check_cuda(cudaMemsetAsync(total, 0, static_cast<size_t>(width) * sizeof(float), stream), kOp);
  add_columns(static_cast<const float*>(part.weight), parts, width, total, stream);
  check_launch(kOp);
}

/// Whether TMA can copy these matrices: every row of each must begin at a multiple of 16 bytes.
bool fits_tma(std::initializer_list<const void*> data, std::initializer_list<int64_t> sizes) {
  return std::all_of(data.begin(), data.end(),
                     [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }) &&
         std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size % 8 == 0; });
}

}  // namespace

bool grouped_product(const Product& p, Scratch& scratch, cudaStream_t stream) {
  const Dtype result = p.form == Form::weight ? Dtype::f32 : Dtype::bf16;
  if (p.left_type() != Dtype::bf16 || p.right_type() != Dtype::bf16 || p.result_type() != result ||
      !fits_tma({p.wide, p.narrow, p.weight}, {p.inputs, p.outputs, p.wide_stride}))
    return false;
  switch (p.form) {
    case Form::forward:
      launch_product<Form::forward>(p, stream);
      break;
    case Form::input:
      launch_product<Form::input>(p, stream);
      break;
    case Form::weight:
      launch_weight(p, scratch, stream);
      break;
  }
  return true;
}

bool grouped_gate(const GatedProduct& p, cudaStream_t stream) {
  if (!fits_tma({p.x, p.weight, p.gate_up, p.h}, {p.inputs, p.width})) return false;
  GroupedArguments args{};
  args.left = operand_map(p.x, p.rows, p.inputs, p.inputs, 64);
  args.right = operand_map(p.weight, p.groups * 2 * p.width, p.inputs, p.inputs, Wide::columns / 2);
  if (p.gate_up) args.result = result_map(p.gate_up, p.rows, 2, p.width, 2 * p.width);
  args.hidden = result_map(p.h, p.rows, 1, p.width, p.width);
  args.offsets = p.offsets;
  args.groups = static_cast<int>(p.groups);
  args.scale = 1;
  args.n = static_cast<int>(p.width), args.k = static_cast<int>(p.inputs);
  args.to = static_cast<Bf16*>(p.gate_up), args.to_stride = 2 * p.width;
  args.hidden_to = static_cast<Bf16*>(p.h);
  args.weights = p.weights, args.source = p.source;
  launch<GroupedPlan<Form::forward, Finish::gate, Wide>>(args, stream);
  return true;
}

}  // namespace mixtral::cuda
