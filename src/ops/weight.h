#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/weight_format.h"
#include "tensor/tensor.h"

namespace mixtral::ops {

/// In which order the rows of a weight's pieces stand. The numbers are the same in every layout.
enum class WeightLayout : uint8_t {
  rows,  // one after another: as in files, and as packing writes them
  /// Eight rows side by side, for kernels that compute eight outputs at once; O must be a multiple
  /// of 8.
  /// Separate formats: the first four bytes of codes of each row, then the next four, and so on;
  /// then the same of the scales, one at a time. A row of codes must be a multiple of 4 bytes.
  /// Formats in blocks: the first block of each row, then the second, and so on, four bytes of each
  /// row at a time. Where block_bytes is not a multiple of 4, a scale's two bytes come first: those
  /// that begin a block, or end a super-block. block_bytes must be even.
  interleaved8,
  /// Sixteen rows of a dense format of 16 or 32 bits side by side: the first four bytes of each
  /// row, then the next four, and so on. O must be a multiple of 16, and a row of 4 bytes.
  interleaved16,
  /// Blocks of a row divided into codes and what describes them, for GPUs: block_planes.h. Rows
  /// stand one after another.
  planes,
};

/// Rows that a layout keeps side by side: a part of a weight has a whole number of such bundles.
constexpr int64_t bundle_rows(WeightLayout layout) {
  return layout == WeightLayout::interleaved8 ? 8 : layout == WeightLayout::interleaved16 ? 16 : 1;
}

/// What a product multiplies by: G matrices of O rows and I columns, in some format. A view of
/// memory it does not own, like Tensor. A dense tensor [G, O, I] or [O, I] is one, too.
struct Weight {
  Shape shape;  // [G, O, I]
  WeightFormat format;
  WeightLayout layout = WeightLayout::rows;
  // Pieces: R = G·O rows each, with as many columns as the format says.
  Tensor codes;         // the values [R, I] of a dense format; else u8
  Tensor scales;        // separate formats'
  Tensor minima;        // or zero points
  Tensor super_scales;  // of the scales (and minima)

  Weight() = default;
  Weight(const Tensor& dense);

  bool empty() const { return codes.empty(); }
  explicit operator bool() const { return !empty(); }
  int64_t dim(int i) const { return shape[i]; }
  int64_t groups() const { return shape[0]; }
  int64_t outputs() const { return shape[1]; }
  int64_t inputs() const { return shape[2]; }
  int64_t rows() const { return shape[0] * shape[1]; }
  bool dense() const { return format.dense(); }
  int64_t bytes() const;  // of all pieces

  /// The values [G, O, I] of a dense weight in plain rows; anything else is an InternalError.
  Tensor tensor() const;
  /// Groups [begin, end).
  Weight slice(int64_t begin, int64_t end) const;
  /// Rows [begin, end) of all R, as one group; whole bundles of an interleaved weight.
  Weight slice_rows(int64_t begin, int64_t end) const;
};

/// The pieces, to do the same with each.
inline constexpr Tensor Weight::* kWeightPieces[] = {&Weight::codes, &Weight::scales,
                                                     &Weight::minima, &Weight::super_scales};

/// A weight whose pieces are cut by `take(Shape, Dtype) -> Tensor`: from an arena, or a Cutter.
template <class Take>
Weight make_weight(Shape shape, WeightFormat format, Take&& take) {
  Weight weight;
  weight.shape = shape;
  weight.format = format;
  const FormatRow& row = format.row();
  const int64_t rows = shape[0] * shape[1], columns = shape[2];
  const auto piece = [&](int64_t width, Dtype dtype) {
    return width > 0 ? Tensor(take(Shape{rows, width}, dtype)) : Tensor();
  };
  weight.codes = piece(format.codes(columns), row.type);
  weight.scales = piece(format.scales(columns), row.scale_type);
  weight.minima = piece(format.minima(columns), row.minimum_type);
  weight.super_scales = piece(format.super_scales(columns), row.super_type);
  return weight;
}

/// Throws InternalError unless the pieces are those of the weight's shape and format.
void expect_weight(std::string_view name, const Weight& weight);

/// Whether a weight of this format and shape [G, O, I] can have a layout.
bool has_layout(WeightFormat format, const Shape& shape, WeightLayout layout);

// For weights in ordinary memory. The scalar reference of every format.

/// Packs `values` [I] into row `row` of a weight in plain rows that is not dense.
void pack_row(const Weight& weight, int64_t row, std::span<const float> values);
/// The numbers of row `row` of a weight that is not dense, in any layout.
void unpack_row(const Weight& weight, int64_t row, std::span<float> values);
/// Whether the scales (and minima) of blocks of codes show that all their numbers are finite. False
/// of a format where only unpacking does.
bool has_finite_scales(WeightFormat format, std::span<const std::byte> codes);
/// The same of a weight in plain rows.
bool has_finite_scales(const Weight& weight);
/// Copies a weight to another of the same shape and format in another layout, byte for byte.
void change_layout(const Weight& from, const Weight& to);

}  // namespace mixtral::ops
