#include <algorithm>

#include "cuda/backend.h"
#include "cuda/blas.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/grouped.h"
#include "cuda/norm_few.h"
#include "cuda/product.h"
#include "cuda/rows.cuh"
#include "cuda/scaled_product.h"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "cuda/stream_product.h"
#include "ops/matmul.h"

// Chooses the kernel that computes a product.
namespace mixtral::cuda {
namespace {

constexpr int64_t kSkinnyOutputs = 16;
constexpr int64_t kFewRows = 4, kFewGroupedRows = 16;

/// to[r, c] = from[r, c] in bf16; rows of `from` are `stride` apart.
struct Round {
  const float* from;
  int64_t stride;
  Bf16* to;
  int width;
  template <int n>
  __device__ void at(int64_t row, int column) const {
    float values[n];
    load(from + row * stride + column, values);
    store(to + row * width + column, values);
  }
};

/// A copy of an f32 operand in bf16, in scratch memory.
Bf16* rounded(void* from, int64_t rows, int64_t width, int64_t stride, Scratch& scratch,
              cudaStream_t stream) {
  auto* to = scratch.take<Bf16>(rows * width);
  const Round body{static_cast<const float*>(from), stride, to, static_cast<int>(width)};
  const Tensor source(from, {1}, Dtype::f32);
  if (stride % 8 == 0)
    each_row<8>("rounding operands", rows, width, {source}, stream, body);
  else
    each_row<1>("rounding operands", rows, width, {source}, stream, body);
  return to;
}

/// Replaces f32 operands by copies in bf16.
Product with_rounded_operands(Product p, Scratch& scratch, cudaStream_t stream) {
  using Form = Product::Form;
  if (p.form != Form::weight && p.weight_type == Dtype::f32) {
    p.weight = rounded(p.weight, p.groups * p.outputs, p.inputs, p.inputs, scratch, stream);
    p.weight_type = Dtype::bf16;
  }
  if (p.form != Form::input && p.narrow_type == Dtype::f32) {
    p.narrow = rounded(p.narrow, p.rows, p.inputs, p.inputs, scratch, stream);
    p.narrow_type = Dtype::bf16;
  }
  if (p.form != Form::forward && p.wide_type == Dtype::f32) {
    p.wide = rounded(p.wide, p.rows, p.outputs, p.wide_stride, scratch, stream);
    p.wide_type = Dtype::bf16;
    p.wide_stride = p.outputs;
  }
  return p;
}

/// For kernels that can only add to a weight's gradient: clears it and adds, where it is assigned.
Product adding(Product p, cudaStream_t stream) {
  if (p.form != Product::Form::weight || p.accumulate) return p;
  const int64_t bytes = p.groups * p.outputs * p.inputs * size_of(p.weight_type);
  check_cuda(cudaMemsetAsync(p.weight, 0, static_cast<size_t>(bytes), stream), "grouped_matmul");
  p.accumulate = true;
  return p;
}

/// Products of LoRA with the low rank on one side, where grouped_product was measured (on an H100)
/// to be faster than cuBLASLt and skinny_product: x Aᵀ and the gradients of A and x for ranks up to
/// 16, and the products that are added to y or dx.
bool is_adapter(const Product& p) {
  if (p.left_type() != Dtype::bf16 || p.right_type() != Dtype::bf16) return false;
  return p.outputs <= kSkinnyOutputs ||
         (p.form != Product::Form::weight && p.accumulate && std::min(p.inputs, p.outputs) <= 64);
}

/// Forward products by kernels that are chosen by types and shapes of weights, not by the number of
/// rows, and that sum over the inner index in one order.
void multiply_invariantly(Product p, int processors, Scratch& scratch, cudaStream_t stream) {
  if (p.outputs == 0 || p.inputs == 0) return;
  const bool f16 = p.left_type() == Dtype::f16 || p.right_type() == Dtype::f16;
  if (p.round && !f16) p = with_rounded_operands(p, scratch, stream);
  if (grouped_product(p, scratch, stream)) return;
  if (p.groups == 1 && !p.offsets && p.outputs <= kSkinnyOutputs)
    return skinny_product(p, processors, scratch, stream);
  simt_product(p, stream);
}

void multiply(Product p, int processors, CublasLt& blas, Scratch& scratch, cudaStream_t stream) {
  if (p.outputs == 0 || p.inputs == 0) return;
  if (p.rows == 0) {
    adding(p, stream);
    return;
  }
  const bool bf16_already = p.left_type() == Dtype::bf16 && p.right_type() == Dtype::bf16;
  p.round = p.round && !bf16_already;
  const bool both_f32 = p.left_type() == Dtype::f32 && p.right_type() == Dtype::f32;
  const bool f16 = p.left_type() == Dtype::f16 || p.right_type() == Dtype::f16;
  // One group with offsets need not have all rows: those of adapters do not.
  const bool whole = p.groups == 1 && !p.offsets;
  const bool skinny = whole && p.outputs <= kSkinnyOutputs;
  if (p.rows <= (p.groups == 1 ? kFewRows : kFewGroupedRows) && few_rows_product(p, stream)) return;
  if (p.groups == 1 && is_adapter(p) && grouped_product(p, scratch, stream)) return;
  if (skinny && !p.round) return skinny_product(adding(p, stream), processors, scratch, stream);
  if (p.round && !f16) p = with_rounded_operands(p, scratch, stream);
  const bool both_bf16 = p.left_type() == Dtype::bf16 && p.right_type() == Dtype::bf16;
  if (whole && (both_bf16 || (both_f32 && !p.round && p.result_type() == Dtype::f32)) &&
      blas.multiply(p, scratch, stream))
    return;
  if (p.offsets && grouped_product(p, scratch, stream)) return;
  simt_product(adding(p, stream), stream);
}

/// One of the three ops; `wide` from column `begin` on.
template <class Op>
Product product_of(Product::Form form, const Tensor& wide, int64_t begin, const Tensor& narrow,
                   const Tensor& weight, const Op& op) {
  return {.form = form,
          .wide = static_cast<char*>(wide.data()) + begin * size_of(wide.dtype()),
          .narrow = narrow.data(),
          .weight = weight.data(),
          .wide_type = wide.dtype(),
          .narrow_type = narrow.dtype(),
          .weight_type = weight.dtype(),
          .rows = narrow.dim(0),
          .outputs = weight.dim(1),
          .inputs = weight.dim(2),
          .groups = weight.dim(0),
          .wide_stride = wide.dim(1),
          .offsets = data<int>(op.offsets),
          .scale = op.scale,
          .accumulate = op.accumulate,
          .round = op.operands == ops::Operands::bf16 || op.operands == ops::Operands::fp8};
}

}  // namespace

bool CudaBackend::computes_directly(const ops::GroupedMatmul& op) const {
  return op.weight.dense() || (!batch_invariant_ && op.y.dtype() == Dtype::bf16 &&
                               (streams(op.weight, op.x, !op.offsets.empty()) || fits_scaled(op)));
}

void CudaBackend::run(const ops::GroupedMatmul& op) {
  if (waiting_.norm && !waiting_.combine && !waiting_.router && !batch_invariant_ &&
      joins(*waiting_.norm, op)) {
    waiting_.router = op;
    return;
  }
  // A norm that waits can make the product's fixed-point rows, too.
  std::optional<FixedRows> fixed;
  if (waiting_.norm && !waiting_.router && !batch_invariant_)
    if (const auto layout = fixed_layout(op); layout && joins(*waiting_.norm, op.x, *layout)) {
      make_current();
      fixed = make_fixed_rows(static_cast<int>(op.x.dim(0)), static_cast<int>(op.x.dim(1)), *layout,
                              scratch());
      waiting_.fixed = fixed;
    }
  use_device();
  if (op.x.dim(0) == 0) return;
  if (!batch_invariant_ && stream_product(op, settled(), processors_, fixed ? &*fixed : nullptr,
                                          fixed ? *scratch_ : scratch(), stream_))
    return chained(Launch::product);
  if (!op.weight.dense() && scaled_product(op, scratch(), stream_)) return;
  const Product product =
      product_of(Product::Form::forward, op.y, op.y_begin, op.x, op.weight.tensor(), op);
  if (batch_invariant_) return multiply_invariantly(product, processors_, scratch(), stream_);
  multiply(product, processors_, *blas_, scratch(), stream_);
}

void CudaBackend::run(const ops::GroupedMatmulInput& op) {
  use_device();
  multiply(product_of(Product::Form::input, op.dy, op.dy_begin, op.dx, op.weight.tensor(), op),
           processors_, *blas_, scratch(), stream_);
}

void CudaBackend::run(const ops::GroupedMatmulWeight& op) {
  use_device();
  multiply(product_of(Product::Form::weight, op.dy, op.dy_begin, op.x, op.dweight, op), processors_,
           *blas_, scratch(), stream_);
}

void CudaBackend::run(const ops::GroupedMatmulSwiGlu& op) {
  use_device();
  if (op.x.dim(0) == 0) return;
  if (!batch_invariant_ && stream_product(op, settled(), processors_, scratch(), stream_))
    return chained(Launch::product);
  if (!op.weight.dense()) {
    if (scaled_product(op, scratch(), stream_)) return;
    run(op.product());
    run(op.activation());
    return;
  }
  const Tensor weight = op.weight.tensor();
  const bool bf16 = op.x.dtype() == Dtype::bf16 && weight.dtype() == Dtype::bf16 &&
                    op.gate_up.dtype() == Dtype::bf16;
  if (bf16 && op.offsets && (batch_invariant_ || op.x.dim(0) > kFewGroupedRows) &&
      grouped_gate({.x = op.x.data(),
                    .weight = weight.data(),
                    .gate_up = op.keep_gate_up ? op.gate_up.data() : nullptr,
                    .h = op.h.data(),
                    .weights = data<float>(op.weights),
                    .source = data<int>(op.source),
                    .offsets = data<int>(op.offsets),
                    .rows = op.x.dim(0),
                    .inputs = op.x.dim(1),
                    .width = op.h.dim(1),
                    .groups = weight.dim(0)},
                   stream_))
    return;
  run(op.product());
  run(op.activation());
}

}  // namespace mixtral::cuda
