#include "convert/part_packer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "base/error.h"
#include "convert/group_pack.h"
#include "io/convert.h"
#include "ops/block_rounder.h"
#include "ops/weight.h"

namespace mixtral {
namespace {

/// Calls work(row, deviation of the thread's rows) for all rows, and joins the deviations.
template <class Work>
Deviation for_rows(ThreadPool& threads, int64_t rows, const Work& work) {
  std::mutex mutex;
  Deviation all;
  threads.for_ranges(rows, 16, [&](int64_t begin, int64_t end) {
    Deviation own;
    for (int64_t row = begin; row < end; ++row) work(row, own);
    const std::scoped_lock lock(mutex);
    all.add(own);
  });
  return all;
}

/// Packs a row of numbers, each to the nearest that its block's scale allows.
void pack_row(ops::WeightFormat format, std::span<const float> values, uint8_t* to) {
  if (format.name() == "q4_k") return ops::pack_q4_k(values, {.codes = to});
  if (format.name() == "q5_k") return ops::pack_q5_k(values, {.codes = to});
  if (format.name() == "q6_k") return ops::pack_q6_k(values, {.codes = to});
  CHECK(format.row().pack != nullptr, std::string(format.name()) + " is only read");
  format.row().pack(values, {.codes = to});
}

}  // namespace

void Deviation::add(std::span<const float> from, std::span<const float> to) {
  for (size_t i = 0; i < from.size(); ++i) {
    difference = std::max(difference, static_cast<double>(std::abs(to[i] - from[i])));
    size = std::max(size, static_cast<double>(std::abs(from[i])));
  }
}

void Deviation::add(const Deviation& other) {
  difference = std::max(difference, other.difference);
  size = std::max(size, other.size);
}

Tensor PartPacker::room(Buffer& buffer, Shape shape, Dtype dtype) {
  const int64_t bytes = shape.numel() * size_of(dtype);
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = Buffer(host_memory(), bytes);
  }
  return buffer.tensor(shape, dtype);
}

PackedPart PartPacker::copy_codes(const TensorId& id, const StoredType& type) {
  const ops::Weight weight = reader_.codes(id);
  if (!type.grouped()) return {.codes = weight.codes, .scales = {}, .biases = {}};
  // The same bytes as words.
  const int64_t words = weight.inputs() * type.bits / 32;
  return {.codes = Tensor(weight.codes.data(), {weight.rows(), words}, Dtype::i32),
          .scales = weight.scales,
          .biases = weight.minima};
}

PackedPart PartPacker::convert(const TensorId& id, Dtype dtype) {
  const auto format = reader_.format(id);
  const bool plain = format && format->dense();
  const Dtype from = plain ? format->row().type : Dtype::f32;
  const Tensor values = reader_.values(id, from);
  if (from == dtype) return {.codes = values, .scales = {}, .biases = {}};
  const Tensor to = room(codes_, values.shape(), dtype);
  const auto* in = static_cast<const std::byte*>(values.data());
  auto* out = static_cast<std::byte*>(to.data());
  convert_elements(in, from, out, dtype, values.numel());
  if (const int64_t bad = find_non_finite(out, dtype, to.numel()); bad >= 0)
    throw Error(fmt::format("{}: element {} is too large for {}; choose another type, such as bf16",
                            tensor_name(id), bad, to_string(dtype)));
  const bool wider = size_of(dtype) > size_of(from);
  PackedPart part{.codes = to, .scales = {}, .biases = {}};
  if (wider) return part;
  std::vector<float> before(4096), after(4096);
  Deviation deviation;
  for (int64_t at = 0; at < to.numel(); at += 4096) {
    const int64_t count = std::min<int64_t>(4096, to.numel() - at);
    const auto n = static_cast<size_t>(count);
    convert_elements(in + at * size_of(from), from, reinterpret_cast<std::byte*>(before.data()),
                     Dtype::f32, count);
    convert_elements(out + at * size_of(dtype), dtype, reinterpret_cast<std::byte*>(after.data()),
                     Dtype::f32, count);
    deviation.add(std::span(before).first(n), std::span(after).first(n));
  }
  part.rounded = deviation.difference > 0;
  part.difference = deviation.share();
  return part;
}

Deviation PartPacker::compensate(const TensorId& id, const Tensor& values,
                                 const RowRounders& rounders) {
  const Tensor packed = room(packed_, values.shape(), Dtype::f32);
  calibration_->round(threads_, id, values, rounders, packed);
  Deviation deviation;
  deviation.add(values.span<float>(), packed.span<float>());
  return deviation;
}

PackedPart PartPacker::pack_blocks(const TensorId& id, ops::WeightFormat format) {
  const Tensor values = reader_.values(id, Dtype::f32);
  const int64_t rows = values.dim(0), columns = values.dim(1);
  const int64_t bytes = format.row_bytes(columns);
  const Tensor codes = room(codes_, {rows, bytes}, Dtype::u8);
  const auto row_of = [&](int64_t row) { return codes.as<uint8_t>() + row * bytes; };
  Deviation deviation;
  if (calibration_ && Calibration::has(id) && ops::make_rounder(format.name(), nullptr)) {
    deviation = compensate(
        id, values, [&](int64_t row) { return ops::make_rounder(format.name(), row_of(row)); });
  } else {
    deviation = for_rows(threads_, rows, [&](int64_t row, Deviation& own) {
      const std::span<const float> from(values.as<float>() + row * columns,
                                        static_cast<size_t>(columns));
      pack_row(format, from, row_of(row));
      thread_local std::vector<float> again;
      again.resize(from.size());
      format.row().unpack({.codes = row_of(row)}, again);
      own.add(from, again);
    });
  }
  return {.codes = codes,
          .scales = {},
          .biases = {},
          .difference = deviation.share(),
          .rounded = deviation.difference > 0};
}

PackedPart PartPacker::pack_groups(const TensorId& id, const StoredType& type) {
  const Tensor values = reader_.values(id, Dtype::f32);
  const int64_t rows = values.dim(0), columns = values.dim(1);
  const int64_t words = columns * type.bits / 32, groups = columns / type.group;
  const Dtype dtype = type.format.row().type;
  const Tensor codes = room(codes_, {rows, words}, Dtype::i32);
  const Tensor scales = room(scales_, {rows, groups}, dtype);
  const Tensor biases = room(biases_, {rows, groups}, dtype);
  const auto row_of = [&](int64_t row) {
    const int64_t at = row * groups * size_of(dtype);
    return GroupRow{.bits = type.bits,
                    .group = type.group,
                    .dtype = dtype,
                    .codes = codes.as<int32_t>() + row * words,
                    .scales = static_cast<std::byte*>(scales.data()) + at,
                    .biases = static_cast<std::byte*>(biases.data()) + at};
  };
  Deviation deviation;
  if (calibration_ && Calibration::has(id)) {
    deviation =
        compensate(id, values, [&](int64_t row) { return make_group_rounder(row_of(row)); });
  } else {
    deviation = for_rows(threads_, rows, [&](int64_t row, Deviation& own) {
      const std::span<const float> from(values.as<float>() + row * columns,
                                        static_cast<size_t>(columns));
      thread_local std::vector<float> again;
      again.resize(from.size());
      pack_group_row(from, row_of(row), again);
      own.add(from, again);
    });
  }
  return {.codes = codes,
          .scales = scales,
          .biases = biases,
          .difference = deviation.share(),
          .rounded = deviation.difference > 0};
}

Tensor PartPacker::in_order(const OutputTensor& output, const Tensor& rows) {
  if (output.heads == 0) return rows;
  const Tensor to = room(ordered_, rows.shape(), rows.dtype());
  const int64_t width = rows.dim(0) / output.heads;
  interleave_rows(static_cast<const std::byte*>(rows.data()), static_cast<std::byte*>(to.data()),
                  rows.dim(0), width, rows.dim(1) * size_of(rows.dtype()));
  return to;
}

PackedPart PartPacker::pack(const OutputTensor& output, const TensorId& id) {
  const StoredType& type = output.type;
  const auto stored = reader_.format(id);
  PackedPart part;
  if (stored && !stored->dense() && is_stored_as(*stored, type))
    part = copy_codes(id, type);
  else if (type.grouped())
    part = pack_groups(id, type);
  else if (type.format.dense())
    part = convert(id, type.format.row().type);
  else
    part = pack_blocks(id, type.format);
  CHECK(output.heads == 0 || !type.grouped(), "groups are written in the model's order");
  part.codes = in_order(output, part.codes);
  return part;
}

}  // namespace mixtral
