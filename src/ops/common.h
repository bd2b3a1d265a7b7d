#pragma once

#include <string_view>

#include "tensor/tensor.h"

/// The operations of a Mixtral. Each is a plain struct with named, shape-commented fields; a
/// backend computes it. Conventions: tensors are contiguous; an output may alias an input only
/// where the comment says so; gradients of parameters accumulate (+=), gradients of activations are
/// assigned unless the op has `accumulate` and it is set; statistics (norms, router, loss) are f32,
/// or f64 when the activations are f64; every reduction has a fixed order, so that the same inputs
/// give the same bits. Letters as in docs/architecture.md: N tokens, D width, H/G query/kv heads, h
/// head width, E experts, k experts a token, F expert width, V vocabulary, S sequences, R = N·k
/// rows.
namespace mixtral::ops {

/// What an op must do and move: floating-point operations, and bytes if every operand is read and
/// written once. The profiler and the benchmarks divide by it.
struct Cost {
  double flops = 0;
  double bytes = 0;
};

/// The type of statistics beside activations of type `dtype`.
constexpr Dtype statistics_dtype(Dtype dtype) {
  return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

/// How the operands of a product are rounded before they are multiplied; sums are f32 or wider.
enum class Operands : uint8_t {
  exact,
  bf16,
  /// As the weight is. Where the backend multiplies by the weight's codes directly, x is rounded to
  /// whole numbers of 8 bits with a scale a block (ops/rounding.h). Beside weights in bf16 it is
  /// rounded to bf16. Beside other weights it is exact.
  as_weight,
  /// Where the backend multiplies by fp8 codes directly, x is rounded to e4m3 with a power of two a
  /// row (ops/rounding.h); products of so few rows that they are bound by reading the weight may
  /// take x as it is. Beside other weights as bf16.
  fp8,
};

/// The position of a padding row. Such a row belongs to no sequence: an op that is given positions
/// neither reads nor writes anything for it, except where its comment says so.
inline constexpr int32_t kPadding = -1;

namespace detail {
/// Throws InternalError unless `tensor` is present with this shape (a dim of -1 is any).
void expect_shape(std::string_view name, const Tensor& tensor, Shape shape);
void expect_dtype(std::string_view name, const Tensor& tensor, Dtype dtype);
void expect_float(std::string_view name, const Tensor& tensor);
/// The first two, for indices in i32.
void expect_index(std::string_view name, const Tensor& tensor, Shape shape);
}  // namespace detail
}  // namespace mixtral::ops
