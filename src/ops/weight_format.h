#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "tensor/dtype.h"

/// How the numbers of a weight are kept. A format is a row of kWeightFormats, with a function that
/// packs a row of numbers and one that unpacks it again; docs/adding-a-weight-format.md says how to
/// add one.
namespace mixtral::ops {

/// The memory of one row of a weight (I numbers). Absent pieces are null.
struct RowPieces {
  void* codes = nullptr;
  void* scales = nullptr;
  void* minima = nullptr;
  void* super_scales = nullptr;
};

/// Which pieces a format keeps its numbers in.
enum class FormatKind : uint8_t {
  dense,     // a number an element
  separate,  // codes, and beside them a tensor of scales, perhaps one of minima or zero points
  blocks,    // one tensor of bytes: a block's scale, minimum and codes stand together
};

/// What a block has besides its scale.
enum class BlockOffset : uint8_t {
  none,        // value = code * scale
  minimum,     // value = code * scale + minimum
  zero_point,  // value = (code - zero point) * scale
};

/// A row of kWeightFormats. Rows of a weight are kept one by one: blocks never span two of them.
struct FormatRow {
  std::string_view name;  // in flags, files and messages
  FormatKind kind = FormatKind::dense;
  Dtype type = Dtype::u8;  // of the tensor of values or codes
  int bits = 0;            // of a code, or of a dense number
  int block = 1;           // elements along a row that share a scale
  int super_block = 0;     // elements whose scales share a super-block scale; 0: there is none
  int block_bytes = 0;     // blocks: of a super-block, or of a block where there is none
  BlockOffset offset = BlockOffset::none;
  // Types of the separate pieces.
  Dtype scale_type = Dtype::f32;
  Dtype minimum_type = Dtype::f32;
  Dtype super_type = Dtype::f32;
  /// The largest error of a packed number, as a share of the largest magnitude in its block, or in
  /// its super-block where there is one.
  double error = 0;
  /// Packing what `unpack` gave writes the same bytes (unless a scale is subnormal).
  bool repacks = true;
  /// Of a format in blocks: how many f16 numbers a block has, and where the first stands. A block's
  /// numbers are finite where these are. 0: only unpacking shows it.
  int halves = 0, halves_at = 0;
  /// Packs a row. `values` must be finite; every byte of the row's pieces is written. Null of a
  /// format that is only read.
  void (*pack)(std::span<const float> values, const RowPieces& to) = nullptr;
  void (*unpack)(const RowPieces& from, std::span<float> values) = nullptr;
};

// One file a format family: format_fp8.cc, format_nf4.cc, format_q.cc, format_k.cc,
// format_levels.cc, format_groups.cc.
void pack_fp8(std::span<const float> values, const RowPieces& to);
void unpack_fp8(const RowPieces& from, std::span<float> values);
void pack_nf4(std::span<const float> values, const RowPieces& to);
void unpack_nf4(const RowPieces& from, std::span<float> values);

// GGUF's.
void pack_q8_0(std::span<const float> values, const RowPieces& to);
void pack_q4_0(std::span<const float> values, const RowPieces& to);
void pack_q4_1(std::span<const float> values, const RowPieces& to);
void pack_q5_0(std::span<const float> values, const RowPieces& to);
void pack_q5_1(std::span<const float> values, const RowPieces& to);
void pack_q4_k(std::span<const float> values, const RowPieces& to);
void pack_q5_k(std::span<const float> values, const RowPieces& to);
void pack_q6_k(std::span<const float> values, const RowPieces& to);
void unpack_q8_0(const RowPieces& from, std::span<float> values);
void unpack_q4_0(const RowPieces& from, std::span<float> values);
void unpack_q4_1(const RowPieces& from, std::span<float> values);
void unpack_q5_0(const RowPieces& from, std::span<float> values);
void unpack_q5_1(const RowPieces& from, std::span<float> values);
void unpack_q2_k(const RowPieces& from, std::span<float> values);
void unpack_q3_k(const RowPieces& from, std::span<float> values);
void unpack_q4_k(const RowPieces& from, std::span<float> values);
void unpack_q5_k(const RowPieces& from, std::span<float> values);
void unpack_q6_k(const RowPieces& from, std::span<float> values);
void unpack_iq4_nl(const RowPieces& from, std::span<float> values);
void unpack_iq4_xs(const RowPieces& from, std::span<float> values);
void unpack_mxfp4(const RowPieces& from, std::span<float> values);

// MLX's groups, for the rows below.
template <int bits, int block, class Half>
void pack_group(std::span<const float> values, const RowPieces& to);
template <int bits, int block, class Half>
void unpack_group(const RowPieces& from, std::span<float> values);

/// A row of a format in blocks of bytes.
struct BlockRow {
  std::string_view name;
  int bits = 0, block = 0, super_block = 0, bytes = 0;
  double error = 0;
  bool repacks = true;
  int halves = 0, halves_at = 0;
  BlockOffset offset = BlockOffset::none;
  void (*pack)(std::span<const float> values, const RowPieces& to) = nullptr;
  void (*unpack)(const RowPieces& from, std::span<float> values) = nullptr;
};
constexpr FormatRow block_format(const BlockRow& row) {
  return {.name = row.name,
          .kind = FormatKind::blocks,
          .bits = row.bits,
          .block = row.block,
          .super_block = row.super_block,
          .block_bytes = row.bytes,
          .offset = row.offset,
          .error = row.error,
          .repacks = row.repacks,
          .halves = row.halves,
          .halves_at = row.halves_at,
          .pack = row.pack,
          .unpack = row.unpack};
}

/// A row of a format in groups, whose scales and minima are of the type Half.
template <int bits, int block, class Half>
constexpr FormatRow group_format(std::string_view name) {
  return {.name = name,
          .kind = FormatKind::separate,
          .bits = bits,
          .block = block,
          .offset = BlockOffset::minimum,
          .scale_type = dtype_of<Half>,
          .minimum_type = dtype_of<Half>,
          .error = bits == 4                    ? 0.13
                   : std::is_same_v<Half, bf16> ? 0.016
                                                : 0.011,
          .repacks = false,
          .pack = pack_group<bits, block, Half>,
          .unpack = unpack_group<bits, block, Half>};
}

inline constexpr FormatRow kWeightFormats[] = {
    {.name = "f64", .type = Dtype::f64, .bits = 64},
    {.name = "f32", .type = Dtype::f32, .bits = 32},
    {.name = "bf16", .type = Dtype::bf16, .bits = 16},
    {.name = "f16", .type = Dtype::f16, .bits = 16},
    // fp8: an 8-bit float e4m3 and a power of two as the scale. format_fp8.h.
    {.name = "fp8",
     .kind = FormatKind::separate,
     .bits = 8,
     .block = 128,
     .error = 1.0 / 16,
     .pack = pack_fp8,
     .unpack = unpack_fp8},
    // nf4: one of 16 quantiles of the normal distribution. format_nf4.h.
    {.name = "nf4",
     .kind = FormatKind::separate,
     .bits = 4,
     .block = 64,
     .error = 0.152,
     .pack = pack_nf4,
     .unpack = unpack_nf4},
    // GGUF's: format_q.cc, format_k.cc, format_levels.cc.
    block_format({.name = "q8_0",
                  .bits = 8,
                  .block = 32,
                  .bytes = 34,
                  .error = 0.0045,
                  .halves = 1,
                  .pack = pack_q8_0,
                  .unpack = unpack_q8_0}),
    block_format({.name = "q4_0",
                  .bits = 4,
                  .block = 32,
                  .bytes = 18,
                  .error = 0.1255,
                  .halves = 1,
                  .pack = pack_q4_0,
                  .unpack = unpack_q4_0}),
    block_format({.name = "q4_1",
                  .bits = 4,
                  .block = 32,
                  .bytes = 20,
                  .error = 0.068,
                  .halves = 2,
                  .offset = BlockOffset::minimum,
                  .pack = pack_q4_1,
                  .unpack = unpack_q4_1}),
    block_format({.name = "q5_0",
                  .bits = 5,
                  .block = 32,
                  .bytes = 22,
                  .error = 0.063,
                  .halves = 1,
                  .pack = pack_q5_0,
                  .unpack = unpack_q5_0}),
    block_format({.name = "q5_1",
                  .bits = 5,
                  .block = 32,
                  .bytes = 24,
                  .error = 0.034,
                  .halves = 2,
                  .offset = BlockOffset::minimum,
                  .pack = pack_q5_1,
                  .unpack = unpack_q5_1}),
    block_format({.name = "q2_k",
                  .bits = 2,
                  .block = 16,
                  .super_block = 256,
                  .bytes = 84,
                  .halves = 2,
                  .halves_at = 80,
                  .offset = BlockOffset::minimum,
                  .unpack = unpack_q2_k}),
    block_format({.name = "q3_k",
                  .bits = 3,
                  .block = 16,
                  .super_block = 256,
                  .bytes = 110,
                  .halves = 1,
                  .halves_at = 108,
                  .unpack = unpack_q3_k}),
    block_format({.name = "q4_k",
                  .bits = 4,
                  .block = 32,
                  .super_block = 256,
                  .bytes = 144,
                  .halves = 2,
                  .offset = BlockOffset::minimum,
                  .unpack = unpack_q4_k}),
    block_format({.name = "q5_k",
                  .bits = 5,
                  .block = 32,
                  .super_block = 256,
                  .bytes = 176,
                  .halves = 2,
                  .offset = BlockOffset::minimum,
                  .unpack = unpack_q5_k}),
    block_format({.name = "q6_k",
                  .bits = 6,
                  .block = 16,
                  .super_block = 256,
                  .bytes = 210,
                  .halves = 1,
                  .halves_at = 208,
                  .unpack = unpack_q6_k}),
    block_format({.name = "iq4_nl",
                  .bits = 4,
                  .block = 32,
                  .bytes = 18,
                  .halves = 1,
                  .unpack = unpack_iq4_nl}),
    block_format({.name = "iq4_xs",
                  .bits = 4,
                  .block = 32,
                  .super_block = 256,
                  .bytes = 136,
                  .halves = 1,
                  .unpack = unpack_iq4_xs}),
    block_format({.name = "mxfp4", .bits = 4, .block = 32, .bytes = 17, .unpack = unpack_mxfp4}),
    // MLX's, by bits, group and the type of scale and minimum: format_groups.cc.
    group_format<4, 32, f16>("int4_g32_f16"),
    group_format<4, 64, f16>("int4_g64_f16"),
    group_format<4, 128, f16>("int4_g128_f16"),
    group_format<8, 32, f16>("int8_g32_f16"),
    group_format<8, 64, f16>("int8_g64_f16"),
    group_format<8, 128, f16>("int8_g128_f16"),
    group_format<4, 32, bf16>("int4_g32_bf16"),
    group_format<4, 64, bf16>("int4_g64_bf16"),
    group_format<4, 128, bf16>("int4_g128_bf16"),
    group_format<8, 32, bf16>("int8_g32_bf16"),
    group_format<8, 64, bf16>("int8_g64_bf16"),
    group_format<8, 128, bf16>("int8_g128_bf16"),
};

/// The format of a weight: a reference to its row. Comparing two compares which rows they are.
class WeightFormat {
 public:
  static const WeightFormat f64, f32, bf16, f16, fp8, nf4, q8_0, q4_0, q4_k, q5_k, q6_k;

  /// f32.
  constexpr WeightFormat() : row_(&kWeightFormats[1]) {}
  /// `row` must outlive every use: a row of kWeightFormats, or another constant.
  constexpr explicit WeightFormat(const FormatRow& row) : row_(&row) {}

  constexpr const FormatRow& row() const { return *row_; }
  constexpr std::string_view name() const { return row_->name; }
  constexpr FormatKind kind() const { return row_->kind; }
  constexpr bool dense() const { return row_->kind == FormatKind::dense; }
  /// Elements along a row that must be whole: the block or super-block of a format in blocks.
  constexpr int64_t unit() const {
    if (row_->kind != FormatKind::blocks) return 1;
    return row_->super_block > 0 ? row_->super_block : row_->block;
  }

  // Elements of each piece of a row of `columns` numbers; 0 of a piece that the format lacks. A
  // row's codes begin at a whole byte.
  constexpr int64_t codes(int64_t columns) const {
    if (dense()) return columns;
    if (row_->kind == FormatKind::blocks) return columns / unit() * row_->block_bytes;
    return (columns * row_->bits + 7) / 8;
  }
  constexpr int64_t scales(int64_t columns) const {
    return row_->kind == FormatKind::separate ? whole(columns, row_->block) : 0;
  }
  constexpr int64_t minima(int64_t columns) const {
    return row_->offset == BlockOffset::none ? 0 : scales(columns);
  }
  constexpr int64_t super_scales(int64_t columns) const {
    const bool has = row_->kind == FormatKind::separate && row_->super_block > 0;
    return has ? whole(columns, row_->super_block) : 0;
  }
  /// Bytes of all pieces of a row.
  constexpr int64_t row_bytes(int64_t columns) const {
    return codes(columns) * size_of(row_->type) + scales(columns) * size_of(row_->scale_type) +
           minima(columns) * size_of(row_->minimum_type) +
           super_scales(columns) * size_of(row_->super_type);
  }

  friend constexpr bool operator==(const WeightFormat&, const WeightFormat&) = default;

 private:
  static constexpr int64_t whole(int64_t columns, int64_t block) {
    return (columns + block - 1) / block;
  }

  const FormatRow* row_;
};

/// The format of this name, or none.
constexpr std::optional<WeightFormat> find_weight_format(std::string_view name) {
  for (const FormatRow& row : kWeightFormats)
    if (row.name == name) return WeightFormat(row);
  return std::nullopt;
}
inline constexpr WeightFormat WeightFormat::f64 = *find_weight_format("f64");
inline constexpr WeightFormat WeightFormat::f32 = *find_weight_format("f32");
inline constexpr WeightFormat WeightFormat::bf16 = *find_weight_format("bf16");
inline constexpr WeightFormat WeightFormat::f16 = *find_weight_format("f16");
inline constexpr WeightFormat WeightFormat::fp8 = *find_weight_format("fp8");
inline constexpr WeightFormat WeightFormat::nf4 = *find_weight_format("nf4");
inline constexpr WeightFormat WeightFormat::q8_0 = *find_weight_format("q8_0");
inline constexpr WeightFormat WeightFormat::q4_0 = *find_weight_format("q4_0");
inline constexpr WeightFormat WeightFormat::q4_k = *find_weight_format("q4_k");
inline constexpr WeightFormat WeightFormat::q5_k = *find_weight_format("q5_k");
inline constexpr WeightFormat WeightFormat::q6_k = *find_weight_format("q6_k");

/// The format of a tensor of plain numbers.
constexpr WeightFormat dense_format(Dtype dtype) {
  CHECK(is_float(dtype), "weights are floating-point numbers");
  return *find_weight_format(to_string(dtype));
}

}  // namespace mixtral::ops
