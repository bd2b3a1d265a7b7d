#include "convert/part_reader.h"

#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/pages.h"
#include "io/convert.h"
#include "io/json.h"
#include "tensor/cutter.h"

namespace mixtral {

std::optional<ops::WeightFormat> stored_format(const TensorEntry& entry) {
  if (entry.coded) return ops::find_weight_format(entry.format);
  CHECK(entry.dtype.has_value(), entry.name);
  return ops::dense_format(*entry.dtype);
}

PartReader::PartReader(const TensorSource& source, const ModelConfig& config)
    : source_(source), config_(config) {}

const TensorPlace& PartReader::place(const TensorId& id) {
  const auto known = places_.find(id);
  if (known != places_.end()) return known->second;
  auto found = find_place(source_, config_, id);
  if (!found)
    throw Error(
        fmt::format("{}: the tensor {} is missing", source_.path().string(), tensor_name(id)));
  return places_.emplace(id, std::move(*found)).first->second;
}

Tensor PartReader::room(Shape shape, Dtype dtype) {
  const int64_t bytes = shape.numel() * size_of(dtype);
  if (buffer_.bytes() < bytes) {
    buffer_ = Buffer();  // given back first: there may not be room for both
    buffer_ = Buffer(host_memory(), bytes);
  }
  return buffer_.tensor(shape, dtype);
}

void PartReader::release(const TensorId& id) { release_pages(source_.raw(place(id).name)); }

Tensor PartReader::values(const TensorId& id, Dtype dtype) {
  const TensorPlace& at = place(id);
  const Tensor to = room(tensor_shape(config_, id.kind), dtype);
  read_tensor(source_, at, config_, id, to);
  release(id);
  const int64_t bad = find_non_finite(static_cast<const std::byte*>(to.data()), dtype, to.numel());
  if (bad >= 0)
    throw Error(fmt::format(
        "{}: tensor \"{}\" has a NaN or an infinity ({}, element {}{}); the weights are damaged, "
        "or too large for the type {}",
        source_.file_of(at.name).string(), printable(at.name), tensor_name(id), bad,
        entry(id).coded ? ", decoded" : "", to_string(dtype)));
  return to;
}

ops::Weight PartReader::codes(const TensorId& id) {
  const TensorPlace& at = place(id);
  const auto stored = format(id);
  CHECK(stored && !stored->dense() && !at.naming.transposed, at.name);
  const Shape one = tensor_shape(config_, id.kind);
  const auto cut = [&](Cutter cutter, ops::Weight& weight) {
    weight = ops::make_weight({1, one[0], one[1]}, *stored,
                              [&](Shape piece, Dtype dtype) { return cutter.take(piece, dtype); });
    return cutter.size();
  };
  ops::Weight weight;
  room({cut(Cutter(), weight)}, Dtype::u8);
  cut(Cutter(buffer_.data()), weight);
  const int64_t first =
      ((at.naming.all_experts ? id.expert * at.naming.parts : 0) + at.naming.part) * one[0];
  const auto copy = [&](int64_t from, const ops::Weight& to) {
    std::vector<Tensor> pieces;
    for (const auto piece : ops::kWeightPieces) pieces.push_back(to.*piece);
    source_.read_codes(at.name, from, pieces);
  };
  if (at.naming.row_order == TensorNaming::RowOrder::same)
    copy(first, weight);
  else
    for (int64_t row = 0; row < one[0]; ++row)
      copy(first + row_in_head(at.naming, row, config_.head_dim), weight.slice_rows(row, row + 1));
  release(id);
  return weight;
}

void interleave_rows(const std::byte* from, std::byte* to, int64_t rows, int64_t width,
                     int64_t bytes) {
  const TensorNaming order{.row_order = TensorNaming::RowOrder::interleaved};
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(to + row_in_head(order, row, width) * bytes, from + row * bytes,
                static_cast<size_t>(bytes));
}

}  // namespace mixtral
