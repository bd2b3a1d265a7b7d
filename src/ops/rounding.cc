#include "ops/rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "ops/format_fp8.h"

namespace mixtral::ops {

int activation_block(WeightFormat format) {
  const FormatRow& row = format.row();
  if (row.kind == FormatKind::blocks) return row.super_block > 0 ? row.super_block : row.block;
  constexpr int kGroup = 32;
  const bool affine = row.kind == FormatKind::separate && row.offset != BlockOffset::none;
  return affine && row.block % kGroup == 0 ? kGroup : 0;
}

void round_to_integers(std::span<const float> row, int block, std::span<float> rounded) {
  for (size_t first = 0; first < row.size(); first += static_cast<size_t>(block)) {
    const size_t end = std::min(row.size(), first + static_cast<size_t>(block));
    float largest = 0;
    bool finite = true;
    for (size_t i = first; i < end; ++i) {
      largest = std::max(largest, std::abs(row[i]));
      finite = finite && std::isfinite(row[i]);
    }
    const float scale = largest / 127;
    const float inverse = largest < kLeastRounded ? 0 : 127 / largest;
    for (size_t i = first; i < end; ++i)
      rounded[i] = finite ? std::nearbyint(row[i] * inverse) * scale
                          : std::numeric_limits<float>::quiet_NaN();
  }
}

void round_to_e4m3(std::span<const float> row, std::span<float> rounded) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::abs(value));
  if (!std::isfinite(largest)) {
    std::ranges::fill(rounded, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const float scale =
      largest > 0 ? std::bit_cast<float>(fp8_scale_bits(std::bit_cast<uint32_t>(largest))) : 1;
  for (size_t i = 0; i < row.size(); ++i)
    rounded[i] = std::isnan(row[i]) ? row[i] : from_e4m3(to_e4m3(row[i] / scale)) * scale;
}

}  // namespace mixtral::ops
