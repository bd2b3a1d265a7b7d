#include "tensor/tensor.h"

namespace mixtral {

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i ? ", " : "") + std::to_string((*this)[i]);
  return text + "]";
}

Tensor Tensor::view(int64_t offset, Shape shape) const {
  CHECK(offset >= 0 && offset + shape.numel() <= numel(),
        shape.to_string() + " at " + std::to_string(offset) + " of " + shape_.to_string());
  if (empty()) return {};
  return {static_cast<char*>(data_) + offset * size_of(dtype_), shape, dtype_};
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  CHECK(rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0));
  const int64_t row = dim(0) == 0 ? 0 : numel() / dim(0);
  switch (rank()) {
    case 1:
      return view(begin, {end - begin});
    case 2:
      return view(begin * row, {end - begin, dim(1)});
    case 3:
      return view(begin * row, {end - begin, dim(1), dim(2)});
    default:
      return view(begin * row, {end - begin, dim(1), dim(2), dim(3)});
  }
}

Tensor Tensor::operator[](int64_t i) const {
  CHECK(rank() >= 2);
  const Tensor row = slice(i, i + 1);
  if (rank() == 2) return row.reshape({dim(1)});
  if (rank() == 3) return row.reshape({dim(1), dim(2)});
  return row.reshape({dim(1), dim(2), dim(3)});
}

Tensor Tensor::reshape(Shape shape) const {
  CHECK(shape.numel() == numel(), shape_.to_string() + " to " + shape.to_string());
  return empty() ? Tensor() : Tensor(data_, shape, dtype_);
}

}  // namespace mixtral
