#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "base/advice.h"
#include "base/error.h"
#include "tensor/tensor.h"

/// From run-time types and alignments to kernel templates.
namespace mixtral::cuda {

template <class T>
struct Type {
  using type = T;
};
template <class Tag>
using type_of = typename std::remove_cvref_t<Tag>::type;

[[noreturn]] inline void refuse(Dtype dtype) {
  throw AdvisedError("‹device cuda› does not compute in " + std::string(to_string(dtype)) +
                     " here; use ‹dtype fp32› or ‹dtype bf16›, or ‹device ref›");
}

/// Calls f with the Type of an activation: f32 or bf16.
template <class F>
void with_activation(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(Type<float>{});
    case Dtype::bf16:
      return f(Type<__nv_bfloat16>{});
    default:
      refuse(dtype);
  }
}

/// Calls f with the Type of a weight: f32, bf16 or f16.
template <class F>
void with_weight(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f(Type<__half>{});
  with_activation(dtype, f);
}

/// Calls f with any floating-point Type.
template <class F>
void with_float(Dtype dtype, F&& f) {
  if (dtype == Dtype::f64) return f(Type<double>{});
  with_weight(dtype, f);
}

/// The elements of a tensor as a device type of the same size; null when it is absent.
template <class T>
T* data(const Tensor& tensor) {
  CHECK(tensor.empty() || size_of(tensor.dtype()) == static_cast<int64_t>(sizeof(T)));
  return static_cast<T*>(tensor.data());
}

/// Whether rows of `width` elements of these tensors can be read in packs of n.
inline bool packs(int n, int64_t width, std::initializer_list<Tensor> tensors) {
  if (width % n != 0) return false;
  for (const Tensor& tensor : tensors) {
    const int64_t bytes = std::min<int64_t>(16, n * size_of(tensor.dtype()));
    if (reinterpret_cast<uintptr_t>(tensor.data()) % static_cast<uintptr_t>(bytes) != 0)
      return false;
  }
  return true;
}

/// Calls f with std::integral_constant n or 1, by whether packs of n fit.
template <int n, class F>
void with_packs(int64_t width, std::initializer_list<Tensor> tensors, F&& f) {
  if (packs(n, width, tensors))
    f(std::integral_constant<int, n>{});
  else
    f(std::integral_constant<int, 1>{});
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A grid dimension, which must not be 0: ops with nothing to do return before they launch.
inline unsigned blocks(int64_t count) {
  CHECK(count > 0 && count < (int64_t{1} << 31));
  return static_cast<unsigned>(count);
}

}  // namespace mixtral::cuda
