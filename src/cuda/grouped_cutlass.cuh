#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "cuda/grouped.h"
#include "cuda/scratch.h"
#include "cuda/status.h"

// Grouped bf16 products by CUTLASS's persistent, warp-specialised wgmma kernels. A small kernel
// turns the offsets into shapes, pointers and strides on the device, which is where the product's
// tile scheduler reads them; the host never sees an offset. Each .cu file beside this one makes one
// kernel, since each takes half a minute and 3 GB to compile.
//
// Where rows are ragged, a cluster is two tiles wide and one high: a group's last rows then leave
// at most one tile's height idle instead of two. With experts unevenly loaded, 8,192 rows of 8x7B
// went from 480 to 650-700 TFLOP/s by that.
namespace mixtral::cuda {

/// Which product, as CUTLASS sees it: D [M, N] = alpha · A [M, K] B + beta · C, row-major D.
///   forward: A = x, B = Wᵀ (K is contiguous in W);  input: A = dy, B = W (N is);
///   weight: A = dyᵀ (M is contiguous), B = x (N is), K the rows of the group.
template <Product::Form form>
struct Layouts {
  using A = cutlass::layout::RowMajor;
  using B = cutlass::layout::ColumnMajor;
};
template <>
struct Layouts<Product::Form::input> {
  using A = cutlass::layout::RowMajor;
  using B = cutlass::layout::RowMajor;
};
template <>
struct Layouts<Product::Form::weight> {
  using A = cutlass::layout::ColumnMajor;
  using B = cutlass::layout::RowMajor;
};

template <Product::Form kForm, class TileShape, class Cluster, bool cooperative, bool kAccumulate>
struct GroupedKernel {
  static constexpr Product::Form form = kForm;
  static constexpr bool accumulate = kAccumulate;
  using Bf16 = cutlass::bfloat16_t;
  using Out = std::conditional_t<form == Product::Form::weight, float, Bf16>;
  using Source = std::conditional_t<accumulate, Out, void>;
  using LayoutA = typename Layouts<form>::A;
  using LayoutB = typename Layouts<form>::B;
  using LayoutD = cutlass::layout::RowMajor;
  static constexpr int kAlignment = 8;  // elements of bf16 in 16 bytes
  static constexpr int kAlignmentD = 16 / static_cast<int>(sizeof(Out));

  using MainSchedule =
      std::conditional_t<cooperative, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
                         cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>;
  using EpilogueSchedule =
      std::conditional_t<cooperative, cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
                         cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Source, LayoutD*, kAlignmentD,
      Out, LayoutD*, kAlignmentD, EpilogueSchedule,
      cutlass::epilogue::fusion::LinearCombination<Out, float, Source>>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Bf16, LayoutA*, kAlignment, Bf16,
      LayoutB*, kAlignment, float, TileShape, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      MainSchedule>::CollectiveOp;
  using ProblemShape = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<ProblemShape, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using StrideA = typename Kernel::InternalStrideA;
  using StrideB = typename Kernel::InternalStrideB;
  using StrideD = typename Kernel::InternalStrideD;

  /// The groups' problems, on the device.
  struct Problems {
    cute::Shape<int, int, int>* shape;
    const Bf16** a;
    const Bf16** b;
    Out** d;
    StrideA* stride_a;
    StrideB* stride_b;
    StrideD* stride_d;
  };

  struct Operands {
    Bf16 *wide, *narrow, *weight;
    const int* offsets;
    int64_t wide_stride;
    int outputs, inputs, groups;
  };
};

/// A stride whose one run-time element is the leading dimension.
template <class Stride>
__device__ Stride leading(int64_t elements) {
  Stride stride{};
  if constexpr (cute::is_integral<cute::tuple_element_t<0, Stride>>::value &&
                !cute::is_static<cute::tuple_element_t<0, Stride>>::value)
    cute::get<0>(stride) = elements;
  else
    cute::get<1>(stride) = elements;
  return stride;
}

template <class G>
__device__ void describe_group(typename G::Problems to, typename G::Operands op, int g) {
  const int64_t begin = op.offsets[g];
  const int rows = op.offsets[g + 1] - op.offsets[g];
  auto* wide = op.wide + begin * op.wide_stride;
  auto* narrow = op.narrow + begin * op.inputs;
  auto* weight = op.weight + int64_t{g} * op.outputs * op.inputs;
  using Out = typename G::Out;
  int64_t lead_a, lead_b, lead_d;
  if constexpr (G::form == Product::Form::forward) {
    to.shape[g] = {rows, op.outputs, op.inputs};
    to.a[g] = narrow, lead_a = op.inputs;
    to.b[g] = weight, lead_b = op.inputs;
    to.d[g] = reinterpret_cast<Out*>(wide), lead_d = op.wide_stride;
  } else if constexpr (G::form == Product::Form::input) {
    to.shape[g] = {rows, op.inputs, op.outputs};
    to.a[g] = wide, lead_a = op.wide_stride;
    to.b[g] = weight, lead_b = op.inputs;
    to.d[g] = reinterpret_cast<Out*>(narrow), lead_d = op.inputs;
  } else {
    // A group without rows gets no tiles, since one with K = 0 would be garbage.
    to.shape[g] = {rows > 0 ? op.outputs : 0, op.inputs, rows > 0 ? rows : 8};
    to.a[g] = wide, lead_a = op.wide_stride;
    to.b[g] = narrow, lead_b = op.inputs;
    to.d[g] = reinterpret_cast<Out*>(op.weight) + int64_t{g} * op.outputs * op.inputs;
    lead_d = op.inputs;
  }
  to.stride_a[g] = leading<typename G::StrideA>(lead_a);
  to.stride_b[g] = leading<typename G::StrideB>(lead_b);
  to.stride_d[g] = leading<typename G::StrideD>(lead_d);
}

template <class G>
__global__ void describe_groups(typename G::Problems to, typename G::Operands op) {
  const int g = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (g < op.groups) describe_group<G>(to, op, g);
}

/// The same, and clears the gradients of groups without rows, which get no tiles. blockIdx.y is the
/// group.
template <class G>
__global__ void describe_and_clear_groups(typename G::Problems to, typename G::Operands op) {
  const int g = static_cast<int>(blockIdx.y);
  if (blockIdx.x == 0 && threadIdx.x == 0) describe_group<G>(to, op, g);
  if (op.offsets[g] != op.offsets[g + 1]) return;
  const int64_t packs = int64_t{op.outputs} * op.inputs / 4;
  auto* gradient = reinterpret_cast<float4*>(op.weight) + g * packs;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < packs;
       i += int64_t{gridDim.x} * blockDim.x)
    gradient[i] = float4{0, 0, 0, 0};
}

/// The order in which tiles are computed: along M, the tiles that share columns of B follow each
/// other, so that a group's weights are read once even where they exceed the second-level cache.
enum class Raster { along_m, along_n };

template <class G>
void launch_grouped(const Product& p, int processors, Scratch& scratch, cudaStream_t stream,
                    Raster raster = Raster::along_n) {
  const int64_t groups = p.groups;
  typename G::Problems problems{scratch.take<cute::Shape<int, int, int>>(groups),
                                scratch.take<const typename G::Bf16*>(groups),
                                scratch.take<const typename G::Bf16*>(groups),
                                scratch.take<typename G::Out*>(groups),
                                scratch.take<typename G::StrideA>(groups),
                                scratch.take<typename G::StrideB>(groups),
                                scratch.take<typename G::StrideD>(groups)};
  const auto pointer = [](void* data) { return static_cast<typename G::Bf16*>(data); };
  const typename G::Operands operands{pointer(p.wide),
                                      pointer(p.narrow),
                                      pointer(p.weight),
                                      p.offsets,
                                      p.wide_stride,
                                      static_cast<int>(p.outputs),
                                      static_cast<int>(p.inputs),
                                      static_cast<int>(groups)};
  const auto count = static_cast<unsigned>(groups);
  if constexpr (G::form == Product::Form::weight && !G::accumulate)
    describe_and_clear_groups<G><<<dim3(16, count), 256, 0, stream>>>(problems, operands);
  else
    describe_groups<G><<<(count + 127) / 128, 128, 0, stream>>>(problems, operands);

  cutlass::KernelHardwareInfo hardware;
  cudaGetDevice(&hardware.device_id);
  hardware.sm_count = processors;
  typename G::Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {static_cast<int>(groups), problems.shape, nullptr},
      {problems.a, problems.stride_a, problems.b, problems.stride_b},
      {{}, nullptr, problems.stride_d, problems.d, problems.stride_d},
      hardware};
  if constexpr (G::accumulate)
    arguments.epilogue.ptr_C = const_cast<const typename G::Out**>(problems.d);
  arguments.epilogue.thread.alpha = static_cast<float>(p.scale);
  arguments.epilogue.thread.beta = G::accumulate ? 1.0f : 0.0f;
  using RasterOrder = decltype(arguments.scheduler.raster_order);
  arguments.scheduler.raster_order =
      raster == Raster::along_m ? RasterOrder::AlongM : RasterOrder::AlongN;
  typename G::Gemm gemm;
  char* workspace =
      scratch.take<char>(static_cast<int64_t>(G::Gemm::get_workspace_size(arguments)));
  const auto check = [](cutlass::Status status) {
    if (status == cutlass::Status::kSuccess) return;
    check_cuda(cudaGetLastError(), "grouped_matmul");
    throw Error(std::string("grouped_matmul: CUTLASS failed: ") +
                cutlass::cutlassGetStatusString(status));
  };
  check(gemm.initialize(arguments, workspace, stream));
  check(gemm.run(stream));
}

}  // namespace mixtral::cuda
