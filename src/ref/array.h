#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "tensor/tensor.h"

namespace mixtral::ref {

/// A value of f64 rounded once, to nearest even, to a 16-bit type. (By way of float it would be
/// rounded twice.)
template <class Half>
Half round_to(double value) {
  auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) != value && std::isfinite(nearest)) {
    // Round to odd: the neighbour whose last bit is set keeps on which side of every 16-bit tie the
    // value lies, so that the second rounding is the right one.
    auto bits = std::bit_cast<uint32_t>(nearest);
    if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;
    nearest = std::bit_cast<float>(bits | 1u);
  }
  return Half(nearest);
}

/// A floating-point tensor as an array of f64: an element is widened when it is read, and rounded
/// once when it is assigned. x(n, d) is an element by its indices, x[i] one in row-major order.
class Floats {
 public:
  class Element {
   public:
    Element(const Tensor& tensor, int64_t index) : tensor_(tensor), index_(index) {}
    Element(const Element&) = default;

    operator double() const {
      switch (tensor_.dtype()) {
        case Dtype::f64:
          return data<double>();
        case Dtype::f32:
          return static_cast<double>(data<float>());
        case Dtype::bf16:
          return static_cast<double>(static_cast<float>(data<bf16>()));
        case Dtype::f16:
          return static_cast<double>(static_cast<float>(data<f16>()));
        default:
          CHECK(false, "not a floating-point tensor");
      }
      return 0;
    }
    Element& operator=(double value) {
      switch (tensor_.dtype()) {
        case Dtype::f64:
          data<double>() = value;
          break;
        case Dtype::f32:
          data<float>() = static_cast<float>(value);
          break;
        case Dtype::bf16:
          data<bf16>() = round_to<bf16>(value);
          break;
        case Dtype::f16:
          data<f16>() = round_to<f16>(value);
          break;
        default:
          CHECK(false, "not a floating-point tensor");
      }
      return *this;
    }
    Element& operator=(const Element& other) { return *this = static_cast<double>(other); }
    Element& operator+=(double value) { return *this = static_cast<double>(*this) + value; }

   private:
    template <class T>
    T& data() const {
      return static_cast<T*>(tensor_.data())[index_];
    }

    const Tensor& tensor_;
    int64_t index_;
  };

  explicit Floats(const Tensor& tensor) : tensor_(tensor) {}

  explicit operator bool() const { return !tensor_.empty(); }
  int64_t size() const { return tensor_.numel(); }
  Element operator[](int64_t i) const { return {tensor_, i}; }
  template <class... Index>
  Element operator()(Index... index) const {
    int64_t flat = 0;
    int axis = 0;
    ((flat = flat * tensor_.dim(axis++) + int64_t{index}), ...);
    return {tensor_, flat};
  }

 private:
  Tensor tensor_;
};

/// A tensor of i32 as an array, likewise.
class Integers {
 public:
  explicit Integers(const Tensor& tensor)
      : data_(tensor ? tensor.as<int32_t>() : nullptr), columns_(0) {
    if (tensor.rank() == 2) columns_ = tensor.dim(1);
  }

  explicit operator bool() const { return data_ != nullptr; }
  int32_t& operator[](int64_t i) const { return data_[i]; }
  int32_t& operator()(int64_t row, int64_t column) const { return data_[row * columns_ + column]; }

 private:
  int32_t* data_;
  int64_t columns_;
};

}  // namespace mixtral::ref
