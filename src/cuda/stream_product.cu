#include <algorithm>
#include <bit>
#include <optional>
#include <type_traits>

#include "cuda/aligned.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/quantize_groups.h"
#include "cuda/status.h"
#include "cuda/stream_codecs.cuh"
#include "cuda/stream_launch.h"
#include "cuda/stream_product.h"
#include "ops/block_planes.h"

namespace mixtral::cuda {
namespace {

constexpr int64_t kLeastOutputs = 256;

/// The codec of a format, or none.
std::optional<StreamCodec> codec_of(ops::WeightFormat format) {
  if (format == ops::WeightFormat::bf16) return StreamCodec::bf16;
  if (format == ops::WeightFormat::fp8) return StreamCodec::fp8;
  if (format == ops::WeightFormat::nf4) return StreamCodec::nf4;
  if (format == ops::WeightFormat::q8_0) return StreamCodec::q8_0;
  if (format == ops::WeightFormat::q4_0) return StreamCodec::q4_0;
  if (format == ops::WeightFormat::q4_k) return StreamCodec::q4_k;
  const ops::FormatRow& row = format.row();
  const bool groups = in_groups(format) && row.block >= 64;
  const bool half = row.scale_type == Dtype::f16;
  if (groups && row.bits == 4) return half ? StreamCodec::int4_half : StreamCodec::int4;
  if (groups && row.bits == 8) return half ? StreamCodec::int8_half : StreamCodec::int8;
  return std::nullopt;
}

/// Calls f with the codec as a constant.
template <class F>
void with_codec(StreamCodec codec, F&& f) {
  switch (codec) {
    case StreamCodec::bf16:
      return f(std::integral_constant<StreamCodec, StreamCodec::bf16>{});
    case StreamCodec::fp8:
      return f(std::integral_constant<StreamCodec, StreamCodec::fp8>{});
    case StreamCodec::nf4:
      return f(std::integral_constant<StreamCodec, StreamCodec::nf4>{});
    case StreamCodec::int4:
      return f(std::integral_constant<StreamCodec, StreamCodec::int4>{});
    case StreamCodec::int8:
      return f(std::integral_constant<StreamCodec, StreamCodec::int8>{});
    case StreamCodec::int4_half:
      return f(std::integral_constant<StreamCodec, StreamCodec::int4_half>{});
    case StreamCodec::int8_half:
      return f(std::integral_constant<StreamCodec, StreamCodec::int8_half>{});
    case StreamCodec::q8_0:
      return f(std::integral_constant<StreamCodec, StreamCodec::q8_0>{});
    case StreamCodec::q4_0:
      return f(std::integral_constant<StreamCodec, StreamCodec::q4_0>{});
    case StreamCodec::q4_k:
      return f(std::integral_constant<StreamCodec, StreamCodec::q4_k>{});
  }
}

/// What all products have in common.
template <class Y>
StreamTask<Y> task_of(const ops::Weight& weight, const Tensor& x, const Tensor& offsets) {
  StreamTask<Y> task = {};
  const ops::FormatRow& row = weight.format.row();
  task.rows_of_codes = static_cast<const char*>(weight.codes.data());
  task.scales = static_cast<const char*>(weight.scales.data());
  task.minima = static_cast<const char*>(weight.minima.data());
  task.x = data<Bf16>(x);
  task.offsets = data<int>(offsets);
  task.code_bytes =
      static_cast<int>(weight.codes.dim(1) * static_cast<int64_t>(size_of(weight.codes.dtype())));
  task.rows = static_cast<int>(x.dim(0));
  task.groups = static_cast<int>(weight.groups());
  task.inputs = static_cast<int>(weight.inputs());
  task.scale_words =
      static_cast<int>(weight.format.scales(weight.inputs()) * size_of(row.scale_type) / 4);
  task.scale_stride = task.scale_words * 4;
  if (const ops::BlockPlanes planes = ops::planes_of(weight.format)) {
    task.scale_stride = task.code_bytes;
    task.code_bytes = task.inputs * planes.bits / 8;
    task.scales = task.rows_of_codes + task.code_bytes;
  }
  task.block_shift = std::countr_zero(static_cast<unsigned>(row.block));
  task.scale = 1;
  return task;
}

}  // namespace

bool streams(const ops::Weight& weight, const Tensor& x, bool grouped) {
  const auto codec = codec_of(weight.format);
  const int64_t most_rows = grouped          ? kStreamGroupedRows
                            : weight.dense() ? kStreamDenseRows
                                             : kStreamRows;
  const ops::BlockPlanes planes = ops::planes_of(weight.format);
  const auto layout = planes ? ops::WeightLayout::planes : ops::WeightLayout::rows;
  if (!codec || weight.layout != layout || x.dtype() != Dtype::bf16 || x.dim(0) == 0 ||
      x.dim(0) > most_rows || weight.groups() > kMostStreamGroups || weight.outputs() == 0 ||
      weight.inputs() == 0 || weight.inputs() % 8 != 0)
    return false;
  const int64_t code_bytes = weight.codes.dim(1) * size_of(weight.codes.dtype());
  // A step's scales are copied at once.
  if (planes && weight.inputs() % (planes.bits == 8 ? 128 : 256) != 0) return false;
  const int64_t scale_bytes =
      weight.format.scales(weight.inputs()) * size_of(weight.format.row().scale_type);
  return code_bytes % 16 == 0 && scale_bytes % 4 == 0 && aligned(weight.codes, 16) &&
         aligned(weight.scales, 4) && aligned(weight.minima, 4) && aligned(x, 16);
}

std::optional<FixedLayout> fixed_layout(const ops::GroupedMatmul& op) {
  std::optional<FixedLayout> layout;
  if (op.weight.dense() || !op.offsets.empty() || op.y.dtype() != Dtype::bf16 ||
      !streams(op.weight, op.x, false))
    return layout;
  with_codec(*codec_of(op.weight.format), [&](auto codec) {
    if constexpr (StreamTraits<codec()>::kInteger) layout = kFixedLayout<codec()>;
  });
  return layout;
}

bool stream_product(const ops::GroupedMatmul& op, bool settled, int processors,
                    const FixedRows* fixed, Scratch& scratch, cudaStream_t stream) {
  const bool grouped = !op.offsets.empty();
  if (!streams(op.weight, op.x, grouped)) return false;
  // With few outputs, as a router has, blocks are few: others spread them better.
  if (op.weight.dense() && op.weight.outputs() * op.weight.groups() < kLeastOutputs) return false;
  const bool f32 = op.y.dtype() == Dtype::f32;
  if (f32 && !op.weight.dense()) return false;
  const auto run = [&](auto y, auto codec) {
    using Y = type_of<decltype(y)>;
    StreamTask<Y> task = task_of<Y>(op.weight, op.x, op.offsets);
    task.y = data<Y>(op.y) + op.y_begin;
    task.outputs = static_cast<int>(op.weight.outputs());
    task.y_stride = op.y.dim(1);
    task.scale = static_cast<float>(op.scale);
    task.accumulate = op.accumulate;
    task.early = settled;
    launch_stream<codec()>(task, {op.weight, grouped, false, processors, fixed, scratch, stream});
  };
  if (f32)
    run(Type<float>{}, std::integral_constant<StreamCodec, StreamCodec::bf16>{});
  else
    with_codec(*codec_of(op.weight.format), [&](auto codec) { run(Type<Bf16>{}, codec); });
  check_launch("grouped_matmul");
  return true;
}

bool stream_product(const ops::GroupedMatmulSwiGlu& op, bool settled, int processors,
                    Scratch& scratch, cudaStream_t stream) {
  static_assert(kStreamGroupedRows <= kMostGatedRows);
  if (op.keep_gate_up || op.offsets.empty() || !streams(op.weight, op.x, true)) return false;
  StreamTask<Bf16> task = task_of<Bf16>(op.weight, op.x, op.offsets);
  task.y = data<Bf16>(op.h);
  task.weights = data<float>(op.weights);
  task.source = data<int>(op.source);
  task.outputs = static_cast<int>(op.h.dim(1));
  task.y_stride = op.h.dim(1);
  task.early = settled;
  with_codec(*codec_of(op.weight.format), [&](auto codec) {
    launch_stream<codec()>(task, {op.weight, true, true, processors, nullptr, scratch, stream});
  });
  check_launch("grouped_matmul_swiglu");
  return true;
}

}  // namespace mixtral::cuda
