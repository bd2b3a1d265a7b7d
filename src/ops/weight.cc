#include "ops/weight.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ops/block_planes.h"
#include "ops/common.h"

namespace mixtral::ops {
namespace {

constexpr int64_t kInterleaved = bundle_rows(WeightLayout::interleaved8);
constexpr int64_t kInterleavedBytes = 4;  // of codes at a time

char* row_of(const Tensor& piece, int64_t row) {
  if (piece.empty()) return nullptr;
  return static_cast<char*>(piece.data()) + row * piece.dim(1) * size_of(piece.dtype());
}

/// Calls copy(mixed, plain, bytes) for what one row of a piece in interleaved8 consists of: where
/// it stands, in bytes from the start of the piece, and where it belongs, from the start of the
/// row.
template <class Copy>
void for_interleaved(const Weight& weight, const Tensor& piece, bool codes, int64_t row,
                     const Copy& copy) {
  const FormatRow& format = weight.format.row();
  const int64_t bytes = piece.dim(1) * size_of(piece.dtype());
  const int64_t bundle = row / kInterleaved * kInterleaved * bytes, within = row % kInterleaved;
  if (format.kind == FormatKind::blocks) {
    const int64_t size = format.block_bytes, scale = size % kInterleavedBytes;
    const bool at_end = format.super_block > 0;
    for (int64_t block = 0; block < bytes; block += size) {
      int64_t mixed = bundle + block * kInterleaved;
      if (scale > 0) copy(mixed + within * scale, block + (at_end ? size - scale : 0), scale);
      mixed += kInterleaved * scale + within * kInterleavedBytes;
      const int64_t rest = block + (at_end ? 0 : scale);
      for (int64_t at = 0; at < size - scale; at += kInterleavedBytes)
        copy(mixed + at * kInterleaved, rest + at, kInterleavedBytes);
    }
    return;
  }
  const int64_t step = codes ? kInterleavedBytes : size_of(piece.dtype());
  for (int64_t at = 0; at < bytes; at += step)
    copy(bundle + at * kInterleaved + within * step, at, step);
}

/// A row of a file's blocks, and the same in planes.
void row_to_planes(const BlockPlanes& p, int64_t columns, const uint8_t* row, uint8_t* planes) {
  for (int64_t unit = 0; unit < columns / kUnitColumns; ++unit) {
    const uint64_t codes = unit_of_file(p, row, unit);
    std::memcpy(planes + place_of_unit(unit) * p.bits, &codes, static_cast<size_t>(p.bits));
  }
  uint8_t* headers = planes + columns * p.bits / 8;
  for (int64_t block = 0; block < columns / p.columns; ++block)
    std::memcpy(headers + block * p.header, row + block * p.block_bytes(),
                static_cast<size_t>(p.header));
}

void row_of_planes(const BlockPlanes& p, int64_t columns, const uint8_t* planes, uint8_t* row) {
  const uint8_t* headers = planes + columns * p.bits / 8;
  for (int64_t block = 0; block < columns / p.columns; ++block, row += p.block_bytes()) {
    std::memcpy(row, headers + block * p.header, static_cast<size_t>(p.header));
    for (int at = 0; at < p.code_bytes(); ++at)
      row[p.header + at] = file_byte_of_planes(p, planes, block, at);
  }
}

/// From plain rows to planes, or back.
void change_planes(const Weight& from, const Weight& to) {
  const BlockPlanes p = planes_of(from.format);
  for (int64_t row = 0; row < from.rows(); ++row) {
    const auto* source = reinterpret_cast<const uint8_t*>(row_of(from.codes, row));
    auto* target = reinterpret_cast<uint8_t*>(row_of(to.codes, row));
    (to.layout == WeightLayout::planes ? row_to_planes : row_of_planes)(p, from.inputs(), source,
                                                                        target);
  }
}

/// One row's pieces in plain order: where they stand, or copied together into `room`.
RowPieces pieces_of(const Weight& weight, int64_t row, std::vector<char>& room) {
  std::array<void*, 4> at{};
  if (weight.layout == WeightLayout::planes) {
    room.resize(static_cast<size_t>(weight.codes.dim(1)));
    auto* to = reinterpret_cast<uint8_t*>(room.data());
    row_of_planes(planes_of(weight.format), weight.inputs(),
                  reinterpret_cast<const uint8_t*>(row_of(weight.codes, row)), to);
    return {.codes = to};
  }
  if (weight.layout == WeightLayout::rows) {
    for (size_t i = 0; i < at.size(); ++i) at[i] = row_of(weight.*kWeightPieces[i], row);
  } else {
    room.resize(static_cast<size_t>(weight.format.row_bytes(weight.inputs()) + 4 * 8));
    int64_t offset = 0;
    for (size_t i = 0; i < at.size(); ++i) {
      const Tensor& piece = weight.*kWeightPieces[i];
      if (piece.empty()) continue;
      char* to = room.data() + offset;
      const char* all = static_cast<const char*>(piece.data());
      for_interleaved(weight, piece, i == 0, row, [&](int64_t from, int64_t place, int64_t bytes) {
        std::memcpy(to + place, all + from, static_cast<size_t>(bytes));
      });
      at[i] = to;
      offset += (piece.dim(1) * size_of(piece.dtype()) + 7) / 8 * 8;
    }
  }
  return {.codes = at[0], .scales = at[1], .minima = at[2], .super_scales = at[3]};
}

template <class Number>
Number load(const char* from) {
  Number number;
  std::memcpy(&number, from, sizeof number);
  return number;
}

template <class Number>
void store(char* to, Number number) {
  std::memcpy(to, &number, sizeof number);
}

/// Four bytes of each of eight rows side by side; then, with kSteps 2, the next four of each.
template <int kSteps>
char* interleave_words(const char* first, int64_t row_bytes, char* mixed) {
  for (int64_t r = 0; r < kInterleaved; r += 2, first += 2 * row_bytes) {
    if constexpr (kSteps == 2) {
      const auto a = load<uint64_t>(first), b = load<uint64_t>(first + row_bytes);
      store(mixed + r * kInterleavedBytes, (a & 0xffffffffu) | b << 32);
      store(mixed + (kInterleaved + r) * kInterleavedBytes, a >> 32 | (b >> 32 << 32));
    } else {
      store(mixed + r * kInterleavedBytes, load<uint32_t>(first));
      store(mixed + (r + 1) * kInterleavedBytes, load<uint32_t>(first + row_bytes));
    }
  }
  return mixed + kSteps * kInterleaved * kInterleavedBytes;
}

/// The codes of whole bundles, from plain rows to interleaved8, of a format in blocks: as
/// for_interleaved says, block by block of eight rows.
void interleave_blocks(const Weight& from, const Weight& to) {
  const FormatRow& format = from.format.row();
  const int64_t size = format.block_bytes, scale = size % kInterleavedBytes, rest = size - scale;
  const int64_t row_bytes = from.codes.dim(1), blocks = row_bytes / size;
  const int64_t scale_at = format.super_block > 0 ? rest : 0;
  const int64_t rest_at = format.super_block > 0 ? 0 : scale;
  const char* plain = static_cast<const char*>(from.codes.data());
  char* mixed = static_cast<char*>(to.codes.data());
  for (int64_t row = 0; row < from.rows(); row += kInterleaved, plain += kInterleaved * row_bytes) {
    for (int64_t block = 0; block < blocks; ++block) {
      const char* const first = plain + block * size;
      if (scale > 0)
        for (int64_t r = 0; r < kInterleaved; ++r, mixed += scale)
          store(mixed, load<uint16_t>(first + r * row_bytes + scale_at));
      int64_t at = 0;
      for (; at + 2 * kInterleavedBytes <= rest; at += 2 * kInterleavedBytes)
        mixed = interleave_words<2>(first + rest_at + at, row_bytes, mixed);
      if (at < rest) mixed = interleave_words<1>(first + rest_at + at, row_bytes, mixed);
    }
  }
}

/// A piece of a separate format from plain rows to interleaved8: words of codes, or numbers of 16
/// bits.
void interleave_piece(const Tensor& from, const Tensor& to, bool codes) {
  const int64_t row_bytes = from.dim(1) * size_of(from.dtype());
  const char* plain = static_cast<const char*>(from.data());
  char* mixed = static_cast<char*>(to.data());
  for (int64_t row = 0; row < from.dim(0); row += kInterleaved, plain += kInterleaved * row_bytes) {
    int64_t at = 0;
    if (codes) {
      for (; at + 2 * kInterleavedBytes <= row_bytes; at += 2 * kInterleavedBytes)
        mixed = interleave_words<2>(plain + at, row_bytes, mixed);
      if (at < row_bytes) mixed = interleave_words<1>(plain + at, row_bytes, mixed);
      continue;
    }
    for (; at < row_bytes; at += 2)
      for (int64_t r = 0; r < kInterleaved; ++r, mixed += 2)
        store(mixed, load<uint16_t>(plain + r * row_bytes + at));
  }
}

/// Copies the values of a dense weight from plain rows to interleaved16, or back.
template <bool kInterleave>
void transpose_words(char* rows, char* mixed, int64_t row_count, int64_t row_bytes) {
  constexpr int64_t kSide = bundle_rows(WeightLayout::interleaved16),
                    kLine = 64;  // bytes: a cache line of each row
  for (int64_t row = 0; row < row_count; row += kSide, rows += kSide * row_bytes)
    for (int64_t at = 0; at < row_bytes; at += kLine) {
      const int64_t words = std::min(kLine, row_bytes - at) / kInterleavedBytes;
      uint32_t lines[kSide][kLine / kInterleavedBytes];
      if constexpr (kInterleave) {
        for (int64_t r = 0; r < kSide; ++r)
          std::memcpy(lines[r], rows + r * row_bytes + at,
                      static_cast<size_t>(words * kInterleavedBytes));
        for (int64_t w = 0; w < words; ++w)
          for (const auto& line : lines) {
            store(mixed, line[w]);
            mixed += kInterleavedBytes;
          }
      } else {
        for (int64_t w = 0; w < words; ++w)
          for (auto& line : lines) {
            line[w] = load<uint32_t>(mixed);
            mixed += kInterleavedBytes;
          }
        for (int64_t r = 0; r < kSide; ++r)
          std::memcpy(rows + r * row_bytes + at, lines[r],
                      static_cast<size_t>(words * kInterleavedBytes));
      }
    }
}

Weight with_pieces(const Weight& weight, Shape shape, int64_t begin, int64_t end) {
  Weight part = weight;
  part.shape = shape;
  for (const auto piece : kWeightPieces)
    if (weight.*piece) part.*piece = (weight.*piece).slice(begin, end);
  return part;
}

}  // namespace

Weight::Weight(const Tensor& dense) {
  if (dense.empty()) return;
  CHECK(dense.rank() == 2 || dense.rank() == 3,
        "a weight is [G, O, I] or [O, I], not " + dense.shape().to_string());
  shape = dense.rank() == 3 ? dense.shape() : Shape{1, dense.dim(0), dense.dim(1)};
  format = dense_format(dense.dtype());
  codes = dense.reshape({rows(), inputs()});
}

int64_t Weight::bytes() const {
  return codes.bytes() + scales.bytes() + minima.bytes() + super_scales.bytes();
}

Tensor Weight::tensor() const {
  CHECK(dense() && layout == WeightLayout::rows,
        "a weight in the format " + std::string(format.name()) + " has no plain values");
  return codes.empty() ? Tensor() : codes.reshape(shape);
}

Weight Weight::slice(int64_t begin, int64_t end) const {
  CHECK(0 <= begin && begin <= end && end <= groups());
  return with_pieces(*this, {end - begin, outputs(), inputs()}, begin * outputs(), end * outputs());
}

Weight Weight::slice_rows(int64_t begin, int64_t end) const {
  CHECK(0 <= begin && begin <= end && end <= rows());
  CHECK(begin % bundle_rows(layout) == 0 && end % bundle_rows(layout) == 0,
        "rows of an interleaved weight are taken in whole bundles");
  return with_pieces(*this, {1, end - begin, inputs()}, begin, end);
}

void expect_weight(std::string_view name, const Weight& weight) {
  CHECK(weight.shape.rank() == 3,
        std::string(name) + " is " + weight.shape.to_string() + ", expected [G, O, I]");
  const FormatRow& row = weight.format.row();
  CHECK(weight.inputs() % weight.format.unit() == 0,
        std::string(name) + ": a row of " + std::to_string(weight.inputs()) +
            " numbers is not whole blocks of " + std::string(row.name));
  const auto expect = [&](std::string_view piece, const Tensor& tensor, int64_t columns,
                          Dtype dtype) {
    if (columns == 0) return;
    detail::expect_shape(piece, tensor, {weight.rows(), columns});
    detail::expect_dtype(piece, tensor, dtype);
  };
  expect("codes", weight.codes, weight.format.codes(weight.inputs()), row.type);
  expect("scales", weight.scales, weight.format.scales(weight.inputs()), row.scale_type);
  expect("minima", weight.minima, weight.format.minima(weight.inputs()), row.minimum_type);
  expect("super_scales", weight.super_scales, weight.format.super_scales(weight.inputs()),
         row.super_type);
}

bool has_layout(WeightFormat format, const Shape& shape, WeightLayout layout) {
  if (layout == WeightLayout::rows) return true;
  if (shape[1] % bundle_rows(layout) != 0) return false;
  if (layout == WeightLayout::planes)
    return planes_of(format) && shape[2] % kPairColumns == 0 && shape[2] % format.unit() == 0;
  if (format.dense() || layout == WeightLayout::interleaved16) {
    const int64_t size = size_of(format.row().type);
    return format.dense() && layout == WeightLayout::interleaved16 && (size == 2 || size == 4) &&
           shape[2] * size % kInterleavedBytes == 0;
  }
  if (format.kind() == FormatKind::separate) {
    const int64_t bytes = format.codes(shape[2]) * size_of(format.row().type);
    return bytes % kInterleavedBytes == 0;
  }
  return format.row().block_bytes % 2 == 0;
}

void pack_row(const Weight& weight, int64_t row, std::span<const float> values) {
  CHECK(!weight.dense() && weight.layout == WeightLayout::rows, "packing writes plain rows");
  std::vector<char> unused;
  weight.format.row().pack(values, pieces_of(weight, row, unused));
}

void unpack_row(const Weight& weight, int64_t row, std::span<float> values) {
  CHECK(!weight.dense(), "a dense weight is not packed");
  std::vector<char> room;
  weight.format.row().unpack(pieces_of(weight, row, room), values);
}

bool has_finite_scales(WeightFormat format, std::span<const std::byte> codes) {
  const FormatRow& row = format.row();
  if (row.halves == 0) return false;
  // An exponent of ones, of an infinity or no number, carries into the top bit.
  constexpr uint32_t kExponent = 0x7c00, kCarry = 0x0400, kTop = 0x8000;
  const auto* at = reinterpret_cast<const char*>(codes.data()) + row.halves_at;
  const char* const end = at + codes.size();
  uint32_t any = 0;
  for (int i = 0; i < row.halves; ++i)
    for (const char* half = at + 2 * i; half < end; half += row.block_bytes)
      any |= (load<uint16_t>(half) & kExponent) + kCarry;
  return (any & kTop) == 0;
}

bool has_finite_scales(const Weight& weight) {
  CHECK(!weight.dense() && weight.layout == WeightLayout::rows);
  if (weight.format.kind() == FormatKind::blocks)
    return has_finite_scales(weight.format, {static_cast<const std::byte*>(weight.codes.data()),
                                             static_cast<size_t>(weight.codes.bytes())});
  if (weight.format.row().offset == BlockOffset::none) return false;  // codes that may be NaN
  // Codes are of 8 bits at most: of numbers below this none becomes infinite.
  constexpr float kLargest = 0x1p100f;
  bool finite = true;
  for (const Tensor& piece : {weight.scales, weight.minima, weight.super_scales}) {
    const char* const bytes = static_cast<const char*>(piece.data());  // of a file, at any address
    const auto look = [&]<class T>(T) {
      for (int64_t i = 0; i < piece.numel(); ++i) {
        const T number = load<T>(bytes + i * int64_t{sizeof(T)});
        finite &= std::abs(static_cast<float>(number)) < kLargest;
      }
    };
    if (!piece) continue;
    if (piece.dtype() == Dtype::f32)
      look(float{});
    else if (piece.dtype() == Dtype::bf16)
      look(bf16{});
    else if (piece.dtype() == Dtype::f16)
      look(f16{});
    else if (is_float(piece.dtype()))
      return false;
  }
  return finite;
}

void change_layout(const Weight& from, const Weight& to) {
  CHECK(from.shape == to.shape && from.format == to.format, "two different weights");
  CHECK(has_layout(from.format, from.shape, from.layout) &&
            has_layout(to.format, to.shape, to.layout),
        "a weight that has no such layout");
  if (from.format.kind() == FormatKind::blocks && from.layout == WeightLayout::rows &&
      to.layout == WeightLayout::interleaved8) {
    interleave_blocks(from, to);
    return;
  }
  if (from.dense() && from.layout != to.layout) {
    const bool interleave = from.layout == WeightLayout::rows;
    auto* const rows = static_cast<char*>((interleave ? from : to).codes.data());
    auto* const mixed = static_cast<char*>((interleave ? to : from).codes.data());
    const int64_t row_bytes = from.inputs() * size_of(from.codes.dtype());
    interleave ? transpose_words<true>(rows, mixed, from.rows(), row_bytes)
               : transpose_words<false>(rows, mixed, from.rows(), row_bytes);
    return;
  }
  const auto differs = [&](WeightLayout layout) {
    return (from.layout == layout) != (to.layout == layout);
  };
  if (differs(WeightLayout::planes)) {
    CHECK(differs(WeightLayout::rows), "planes are made of plain rows");
    return change_planes(from, to);
  }
  for (const auto which : kWeightPieces) {
    const Tensor &source = from.*which, &target = to.*which;
    if (source.empty()) continue;
    if (from.layout == to.layout) {
      std::memcpy(target.data(), source.data(), static_cast<size_t>(source.bytes()));
      continue;
    }
    const bool codes = which == &Weight::codes, interleave = from.layout == WeightLayout::rows;
    const bool separate = from.format.kind() == FormatKind::separate;
    if (interleave && separate && (codes || size_of(source.dtype()) == 2)) {
      interleave_piece(source, target, codes);
      continue;
    }
    const Tensor &plain = interleave ? source : target, &mixed = interleave ? target : source;
    for (int64_t row = 0; row < from.rows(); ++row) {
      char* const line = row_of(plain, row);
      for_interleaved(from, mixed, codes, row, [&](int64_t at, int64_t place, int64_t bytes) {
        char* const in_mixed = static_cast<char*>(mixed.data()) + at;
        if (interleave)
          std::memcpy(in_mixed, line + place, static_cast<size_t>(bytes));
        else
          std::memcpy(line + place, in_mixed, static_cast<size_t>(bytes));
      });
    }
  }
}

}  // namespace mixtral::ops
