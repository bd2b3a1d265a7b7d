#pragma once

#include <cstdint>

#include "ops/weight_format.h"

/// WeightLayout::planes, for the host and for GPUs. A row has the codes of all its blocks, and
/// behind them the headers of all blocks: what stands in front of a block's codes in a file, as it
/// stands there. Codes stand in units of 8 columns, in the order of the columns (4 bits: the first
/// lowest). The units of two neighbours of 32 columns take turns: a lane of a GPU that reads two
/// units at once has one of each.
namespace mixtral::ops {

/// A format whose blocks are a header and codes of 4 or 8 bits. bits == 0: another one.
struct BlockPlanes {
  int bits = 0;
  int columns = 0;  // of a block, or of a super-block where there is one
  int header = 0;   // bytes
  int run = 0;      // 4 bits, in a file: byte j of `run` holds codes j and, above it, run + j

  constexpr explicit operator bool() const { return bits > 0; }
  constexpr int code_bytes() const { return columns * bits / 8; }
  constexpr int block_bytes() const { return header + code_bytes(); }
};

constexpr int kUnitColumns = 8;
/// Rows are whole pairs of 32 columns.
constexpr int kPairColumns = 64;

constexpr BlockPlanes planes_of(WeightFormat format) {
  if (format == WeightFormat::q8_0) return {.bits = 8, .columns = 32, .header = 2};
  if (format == WeightFormat::q4_0) return {.bits = 4, .columns = 32, .header = 2, .run = 16};
  if (format == WeightFormat::q4_k) return {.bits = 4, .columns = 256, .header = 16, .run = 32};
  return {};
}

/// The place of a unit among a row's.
constexpr int64_t place_of_unit(int64_t unit) { return unit / 8 * 8 + unit % 4 * 2 + unit / 4 % 2; }

/// The codes of a unit, the first lowest, of a row as it stands in a file.
constexpr uint64_t unit_of_file(const BlockPlanes& p, const uint8_t* row, int64_t unit) {
  const int64_t column = unit * kUnitColumns, within = column % p.columns;
  const uint8_t* codes = row + column / p.columns * p.block_bytes() + p.header;
  uint64_t all = 0;
  if (p.bits == 8) {
    for (int i = 0; i < kUnitColumns; ++i) all |= uint64_t{codes[within + i]} << (8 * i);
    return all;
  }
  codes += within / (2 * p.run) * p.run + within % p.run;
  const int shift = within % (2 * p.run) < p.run ? 0 : 4;
  for (int i = 0; i < kUnitColumns; ++i)
    all |= static_cast<uint64_t>(codes[i] >> shift & 15) << (4 * i);
  return all;
}

/// Byte `at` of the codes of a block of a file, from a row in planes.
constexpr uint8_t file_byte_of_planes(const BlockPlanes& p, const uint8_t* row, int64_t block,
                                      int at) {
  const auto code = [&](int64_t column) {
    const int64_t place = place_of_unit(column / kUnitColumns) * p.bits;
    const int within = static_cast<int>(column % kUnitColumns);
    if (p.bits == 8) return static_cast<int>(row[place + within]);
    return row[place + within / 2] >> (within % 2 * 4) & 15;
  };
  const int64_t first = block * p.columns;
  if (p.bits == 8) return static_cast<uint8_t>(code(first + at));
  const int64_t low = first + at / p.run * 2 * p.run + at % p.run;
  return static_cast<uint8_t>(code(low) | code(low + p.run) << 4);
}

}  // namespace mixtral::ops
