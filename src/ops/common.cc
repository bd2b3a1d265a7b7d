#include "ops/common.h"

#include <string>

namespace mixtral::ops::detail {

void expect_shape(std::string_view name, const Tensor& tensor, Shape shape) {
  bool same = tensor.rank() == shape.rank() && (!tensor.empty() || shape.numel() == 0);
  for (int i = 0; same && i < shape.rank(); ++i) same = shape[i] == -1 || shape[i] == tensor.dim(i);
  CHECK(same, std::string(name) + " is " + tensor.shape().to_string() + ", expected " +
                  shape.to_string());
}

void expect_dtype(std::string_view name, const Tensor& tensor, Dtype dtype) {
  CHECK(tensor.dtype() == dtype, std::string(name) + " is " +
                                     std::string(to_string(tensor.dtype())) + ", expected " +
                                     std::string(to_string(dtype)));
}

void expect_index(std::string_view name, const Tensor& tensor, Shape shape) {
  expect_shape(name, tensor, shape);
  expect_dtype(name, tensor, Dtype::i32);
}

void expect_float(std::string_view name, const Tensor& tensor) {
  CHECK(is_float(tensor.dtype()), std::string(name) + " is not of a floating-point type");
}

}  // namespace mixtral::ops::detail
