#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/grouped.h"
#include "cuda/grouped_launch.cuh"
#include "cuda/scratch.h"
#include "cuda/status.h"

namespace mixtral::cuda {
namespace {

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
  const int64_t parts = std::min(processor_count() / tiles, p.rows / 512);
  if (p.offsets || parts < 2) return launch_product<Form::weight>(p, stream);
  Product part = p;
  part.groups = parts;
  part.accumulate = false;
  part.weight = scratch.take<float>(parts * p.outputs * p.inputs);
  launch_product<Form::weight>(part, stream);
  auto* total = static_cast<float*>(p.weight);
  const int64_t width = p.outputs * p.inputs;
  if (!p.accumulate)
    check_cuda(cudaMemsetAsync(total, 0, static_cast<size_t>(width) * sizeof(float), stream),
               kGroupedOp);
  add_columns(static_cast<const float*>(part.weight), parts, width, total, stream);
  check_launch(kGroupedOp);
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
