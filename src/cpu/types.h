#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string_view>

#include "base/advice.h"
#include "base/error.h"
#include "ops/common.h"

namespace mixtral::cpu {

/// Throws Error unless the tensors that are present are f32: the type in which this backend
/// computes.
inline void expect_f32(std::string_view op, std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (tensor.empty() || tensor.dtype() == Dtype::f32) continue;
    throw AdvisedError(
        fmt::format("the cpu device computes {} on f32 activations, but was given {}: use ‹dtype "
                    "fp32›, or ‹device ref› or ‹device cuda›",
                    op, to_string(tensor.dtype())));
  }
}

/// Throws Error: the type of `tensor` is not one that this backend reads there.
[[noreturn]] inline void refuse_type(std::string_view op, std::string_view name,
                                     const Tensor& tensor) {
  throw Error(fmt::format("the cpu device's {} takes {} in f32, bf16 or f16, but was given {}", op,
                          name, to_string(tensor.dtype())));
}

/// Whether row n is padding; no row is without positions.
inline bool is_padding(const Tensor& positions, int64_t n) {
  return positions && positions.as<int32_t>()[n] == ops::kPadding;
}

/// Rows of `elements` elements that one thread should take at least: below this, starting a second
/// thread costs more than it saves.
constexpr int64_t row_grain(int64_t elements) {
  constexpr int64_t kElements = 8192;
  return elements >= kElements ? 1 : kElements / (elements > 0 ? elements : 1);
}

}  // namespace mixtral::cpu
