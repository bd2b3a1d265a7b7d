#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/matmul_plan.h"

namespace mixtral::cpu {

/// The rows of memory of a block that is needed next. Tiles fetch them into the L2 cache, a part
/// each, so that packing does not wait for memory.
class Ahead {
 public:
  Ahead() = default;
  explicit Ahead(const Block& block) {
    const Operand& operand = block.operand;
    const int64_t size = operand.element == Element::f32 ? 4 : 2;
    const bool strided = operand.layout == Layout::k_strided;
    int64_t length = 0;
    if (operand.layout == Layout::interleaved) {
      rows_ = divide_up(block.lines, kInterleavedLines);
      stride_ = operand.stride * kInterleavedLines * size;
      first_ = static_cast<const char*>(operand.data) + block.line / kInterleavedLines * stride_ +
               block.k * kInterleavedLines * size;
      length = block.count * kInterleavedLines * size;
    } else {
      rows_ = strided ? block.count : block.lines;
      stride_ = operand.stride * size;
      first_ = static_cast<const char*>(operand.data) + (strided ? block.k : block.line) * stride_ +
               (strided ? block.line : block.k) * size;
      length = (strided ? block.lines : block.count) * size;
    }
    const auto skew = static_cast<int64_t>(reinterpret_cast<uintptr_t>(first_) % kLine);
    first_ -= skew;
    lines_ = divide_up(skew + length, kLine);
  }

  int64_t rows() const { return rows_; }  // that are left

  /// Gives a tile its part of the rows, where so many tiles are there to fetch them.
  void give(Tile& tile, int64_t tiles) {
    if (rows_ <= 0) {
      tile.ahead_lines = 0;
      return;
    }
    const int64_t pairs = std::clamp(divide_up(rows_, 2 * std::max<int64_t>(tiles, 1)), int64_t{1},
                                     std::max<int64_t>(tile.units / lines_, 1));
    tile.ahead = first_;
    tile.ahead_half = rows_ > 1 ? stride_ : 0;
    tile.ahead_row = lines_;
    tile.ahead_jump = 2 * stride_ - lines_ * kLine;
    tile.ahead_lines = std::min(pairs, divide_up(rows_, 2)) * lines_;
    first_ += 2 * pairs * stride_;
    rows_ -= 2 * pairs;
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* first_ = nullptr;
  int64_t rows_ = 0, stride_ = 0, lines_ = 0;
};

}  // namespace mixtral::cpu
