#include "ops/format_nf4.h"

#include <algorithm>
#include <cmath>

#include "ops/weight_format.h"

namespace mixtral::ops {
namespace {

int nearest_level(float t) {
  int level = 0;
  while (level < 15 && t > normal_midpoint(level)) ++level;
  return level;
}

}  // namespace

// A code is the level nearest to value / scale, the quotient in f32. A block of zeros has scale 0
// and the codes of 0. The unused half of a row's last byte is 0.
void pack_nf4(std::span<const float> values, const RowPieces& to) {
  constexpr auto kBlock = static_cast<size_t>(WeightFormat::nf4.row().block);
  auto* codes = static_cast<uint8_t*>(to.codes);
  auto* scales = static_cast<float*>(to.scales);
  for (size_t first = 0; first < values.size(); first += kBlock) {
    const auto block = values.subspan(first, std::min(kBlock, values.size() - first));
    float largest = 0;
    for (const float value : block) largest = std::max(largest, std::abs(value));
    *scales++ = largest;
    const auto code = [&](size_t i) {
      return nearest_level(largest > 0 ? block[i] / largest : 0.0f);
    };
    for (size_t i = 0; i < block.size(); i += 2) {
      const int high = i + 1 < block.size() ? code(i + 1) : 0;
      *codes++ = static_cast<uint8_t>(code(i) | high << 4);
    }
  }
}

void unpack_nf4(const RowPieces& from, std::span<float> values) {
  constexpr auto kBlock = static_cast<size_t>(WeightFormat::nf4.row().block);
  const auto* codes = static_cast<const uint8_t*>(from.codes);
  const auto* scales = static_cast<const float*>(from.scales);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = kNormalLevels[codes[i / 2] >> (i % 2 * 4) & 15] * scales[i / kBlock];
}

}  // namespace mixtral::ops
