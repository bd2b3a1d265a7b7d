#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

namespace mixtral::ops {

/// Rounds a row of a format number by number, for a caller that lets the error of one number change
/// those that are still to come. A row is cut into units, whose numbers depend on a common scale,
/// and a unit into blocks with scales of their own; where there is no such step both are the same.
///
/// For each unit: open(), then for each of its blocks, in any order, open_block() and round() of
/// all its numbers, then close().
class BlockRounder {
 public:
  BlockRounder() = default;
  BlockRounder(const BlockRounder&) = delete;
  BlockRounder& operator=(const BlockRounder&) = delete;
  virtual ~BlockRounder() = default;

  virtual size_t unit() const = 0;   // numbers of a unit
  virtual size_t block() const = 0;  // numbers of a block
  /// Chooses what the unit's numbers share, from the numbers as they stand: those for which the
  /// squared error, weighted by `weights`, is small. Both have unit() elements.
  virtual void open(const float* values, const float* weights) = 0;
  /// Chooses the scale of block `index` of the unit, likewise. Both have block() elements.
  virtual void open_block(size_t index, const float* values, const float* weights) = 0;
  /// The number that is kept for number `i` of the unit, whose block is open.
  virtual float round(size_t i, float value) = 0;
  /// Writes unit `index` of the row.
  virtual void close(size_t index) = 0;
};

/// The rounder of a row of `format`, which it writes to `to`; null for a format whose numbers are
/// only rounded to the nearest.
std::unique_ptr<BlockRounder> make_rounder(std::string_view format, void* to);

}  // namespace mixtral::ops
