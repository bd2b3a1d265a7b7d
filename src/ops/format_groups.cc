#include "ops/format_groups.h"

#include <algorithm>
#include <cmath>

#include "ops/weight_format.h"

namespace mixtral::ops {
namespace {

template <int bits>
int read_code(const uint8_t* codes, size_t i) {
  if constexpr (bits == 8) return codes[i];
  return codes[i / 2] >> (i % 2 * 4) & 15;
}

/// Over a byte whose other half is 0, or written before.
template <int bits>
void write_code(uint8_t* codes, size_t i, int code) {
  if constexpr (bits == 8) {
    codes[i] = static_cast<uint8_t>(code);
  } else {
    const int other = i % 2 == 0 ? 0 : codes[i / 2];
    codes[i / 2] = static_cast<uint8_t>(other | code << (i % 2 * 4));
  }
}

}  // namespace

GroupScale group_scale(std::span<const float> group, int most) {
  const auto [least, greatest] = std::ranges::minmax(group);
  if (least == greatest) return {0, least};
  const bool below = std::abs(least) > std::abs(greatest);
  const float edge = below ? least : greatest;
  const float width = (greatest - least) / static_cast<float>(most);
  const float scale = below ? width : -width;
  const float code_of_zero = std::nearbyint(edge / scale);
  return code_of_zero != 0 ? GroupScale{edge / code_of_zero, edge} : GroupScale{scale, 0};
}

/// A code is the one nearest to (value - minimum) / scale with both as they are stored.
template <int bits, int block, class Half>
void pack_group(std::span<const float> values, const RowPieces& to) {
  constexpr auto kBlock = static_cast<size_t>(block);
  constexpr int kMost = (1 << bits) - 1;
  auto* codes = static_cast<uint8_t*>(to.codes);
  auto* scales = static_cast<Half*>(to.scales);
  auto* minima = static_cast<Half*>(to.minima);
  for (size_t first = 0; first < values.size(); first += kBlock) {
    const auto group = values.subspan(first, std::min(kBlock, values.size() - first));
    const GroupScale exact = group_scale(group, kMost);
    const Half scale(exact.scale), minimum(exact.minimum);
    scales[first / kBlock] = scale;
    minima[first / kBlock] = minimum;
    const auto step = static_cast<float>(scale), least = static_cast<float>(minimum);
    for (size_t i = 0; i < group.size(); ++i) {
      const float t = step != 0 ? std::nearbyint((group[i] - least) / step) : 0.0f;
      // Where the scale is not finite, t may be no number; the scale itself then says so.
      const float code = t > 0 ? std::min(t, static_cast<float>(kMost)) : 0.0f;
      write_code<bits>(codes, first + i, static_cast<int>(code));
    }
  }
}

template <int bits, int block, class Half>
void unpack_group(const RowPieces& from, std::span<float> values) {
  constexpr auto kBlock = static_cast<size_t>(block);
  const auto* codes = static_cast<const uint8_t*>(from.codes);
  const auto* scales = static_cast<const Half*>(from.scales);
  const auto* minima = static_cast<const Half*>(from.minima);
  for (size_t first = 0; first < values.size(); first += kBlock) {
    const auto scale = static_cast<float>(scales[first / kBlock]);
    const auto minimum = static_cast<float>(minima[first / kBlock]);
    const size_t end = std::min(first + kBlock, values.size());
    for (size_t i = first; i < end; ++i)
      values[i] = static_cast<float>(read_code<bits>(codes, i)) * scale + minimum;
  }
}

// One pair for each row of kWeightFormats.
template void pack_group<4, 32, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 32, f16>(const RowPieces&, std::span<float>);
template void pack_group<4, 64, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 64, f16>(const RowPieces&, std::span<float>);
template void pack_group<4, 128, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 128, f16>(const RowPieces&, std::span<float>);
template void pack_group<8, 32, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 32, f16>(const RowPieces&, std::span<float>);
template void pack_group<8, 64, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 64, f16>(const RowPieces&, std::span<float>);
template void pack_group<8, 128, f16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 128, f16>(const RowPieces&, std::span<float>);
template void pack_group<4, 32, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 32, bf16>(const RowPieces&, std::span<float>);
template void pack_group<4, 64, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 64, bf16>(const RowPieces&, std::span<float>);
template void pack_group<4, 128, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<4, 128, bf16>(const RowPieces&, std::span<float>);
template void pack_group<8, 32, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 32, bf16>(const RowPieces&, std::span<float>);
template void pack_group<8, 64, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 64, bf16>(const RowPieces&, std::span<float>);
template void pack_group<8, 128, bf16>(std::span<const float>, const RowPieces&);
template void unpack_group<8, 128, bf16>(const RowPieces&, std::span<float>);

}  // namespace mixtral::ops
