#include "ops/format_fp8.h"

#include <algorithm>
#include <cmath>

#include "ops/weight_format.h"

namespace mixtral::ops {

// The scale is the smallest power of two >= m / 464, with the block's largest magnitude m; a code
// is the e4m3 nearest to value / scale. A block of zeros has scale 0 and codes of +0.
void pack_fp8(std::span<const float> values, const RowPieces& to) {
  constexpr auto kBlock = static_cast<size_t>(WeightFormat::fp8.row().block);
  auto* codes = static_cast<uint8_t*>(to.codes);
  auto* scales = static_cast<float*>(to.scales);
  for (size_t first = 0; first < values.size(); first += kBlock) {
    const auto block = values.subspan(first, std::min(kBlock, values.size() - first));
    float largest = 0;
    for (const float value : block) largest = std::max(largest, std::abs(value));
    float scale = 0;
    if (largest > 0) scale = std::bit_cast<float>(fp8_scale_bits(std::bit_cast<uint32_t>(largest)));
    *scales++ = scale;
    for (const float value : block) *codes++ = to_e4m3(largest > 0 ? value / scale : 0.0f);
  }
}

void unpack_fp8(const RowPieces& from, std::span<float> values) {
  constexpr auto kBlock = static_cast<size_t>(WeightFormat::fp8.row().block);
  const auto* codes = static_cast<const uint8_t*>(from.codes);
  const auto* scales = static_cast<const float*>(from.scales);
  for (size_t i = 0; i < values.size(); ++i) values[i] = from_e4m3(codes[i]) * scales[i / kBlock];
}

}  // namespace mixtral::ops
