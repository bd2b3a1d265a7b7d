#pragma once

#include <array>
#include <initializer_list>
#include <span>
#include <string>

#include "tensor/dtype.h"

namespace mixtral {

/// A shape of up to four dimensions.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> dims) {
    CHECK(dims.size() <= kMaxRank);
    for (int64_t dim : dims) dims_[static_cast<size_t>(rank_++)] = dim;
  }

  constexpr int rank() const { return rank_; }
  constexpr int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  constexpr int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= (*this)[i];
    return n;
  }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
  std::string to_string() const;  // "[2, 3]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// A contiguous, row-major, typed view of memory it does not own, on whichever device the backend
/// serves. Trivially copyable. A default-constructed tensor is empty: absent, where an op allows
/// it.
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, Shape shape, Dtype dtype) : data_(data), shape_(shape), dtype_(dtype) {}
  /// A host array as a one-dimensional tensor.
  template <class T>
  explicit Tensor(std::span<T> values)
      : Tensor(values.data(), Shape{static_cast<int64_t>(values.size())}, dtype_of<T>) {}

  bool empty() const { return data_ == nullptr; }
  explicit operator bool() const { return !empty(); }
  void* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  Dtype dtype() const { return dtype_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return empty() ? 0 : numel() * size_of(dtype_); }

  /// The elements as T, which must be the tensor's dtype.
  template <class T>
  T* as() const {
    CHECK(dtype_ == dtype_of<T>, "a tensor is " + std::string(mixtral::to_string(dtype_)));
    return static_cast<T*>(data_);
  }
  template <class T>
  std::span<T> span() const {
    return {as<T>(), static_cast<size_t>(empty() ? 0 : numel())};
  }

  /// Elements [begin, end) of the first dimension.
  Tensor slice(int64_t begin, int64_t end) const;
  /// Index i of the first dimension, which is dropped.
  Tensor operator[](int64_t i) const;
  /// The same elements under another shape.
  Tensor reshape(Shape shape) const;
  /// `shape` elements that start at element `offset`.
  Tensor view(int64_t offset, Shape shape) const;

 private:
  void* data_ = nullptr;
  Shape shape_;
  Dtype dtype_ = Dtype::f32;
};

}  // namespace mixtral
