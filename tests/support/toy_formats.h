#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/weight_format.h"

/// Two formats of 6 bits that no file has, to show that a format needs a row and two functions and
/// nothing else: the rest of the program takes them as they are.
namespace mixtral::testing {

/// The code of 6 bits at `index` of a row's codes, four codes in three bytes.
inline int read_code(const uint8_t* codes, size_t index) {
  const size_t bit = index * 6;
  const int low = codes[bit / 8] >> (bit % 8);
  const int high = bit % 8 > 2 ? codes[bit / 8 + 1] << (8 - bit % 8) : 0;
  return (low | high) & 63;
}
/// Codes must be written in order, over zeros.
inline void write_code(uint8_t* codes, size_t index, int code) {
  const size_t bit = index * 6;
  codes[bit / 8] = static_cast<uint8_t>(codes[bit / 8] | code << (bit % 8));
  if (bit % 8 > 2)
    codes[bit / 8 + 1] = static_cast<uint8_t>(codes[bit / 8 + 1] | code >> (8 - bit % 8));
}

/// toy6: blocks of 32 in 26 bytes, a scale in f16 and 32 codes: value = (code - 32) * scale.
inline void pack_toy6(std::span<const float> values, const ops::RowPieces& to) {
  auto* bytes = static_cast<uint8_t*>(to.codes);
  for (size_t first = 0; first < values.size(); first += 32, bytes += 26) {
    const auto block = values.subspan(first, 32);
    float largest = 0;
    for (const float value : block) largest = std::max(largest, std::abs(value));
    const f16 scale(largest / 31);
    const auto step = static_cast<float>(scale);
    std::memset(bytes, 0, 26);
    std::memcpy(bytes, &scale, 2);
    for (size_t i = 0; i < 32; ++i) {
      const float t = step > 0 ? std::nearbyint(block[i] / step) : 0.0f;
      write_code(bytes + 2, i, 32 + static_cast<int>(std::clamp(t, -31.0f, 31.0f)));
    }
  }
}
inline void unpack_toy6(const ops::RowPieces& from, std::span<float> values) {
  const auto* bytes = static_cast<const uint8_t*>(from.codes);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t* block = bytes + i / 32 * 26;
    f16 scale;
    std::memcpy(&scale, block, 2);
    values[i] = static_cast<float>(read_code(block + 2, i % 32) - 32) * static_cast<float>(scale);
  }
}

/// toy6_pieces: blocks of 16, each with a minimum and a scale of 8 bits; super-blocks of 64 share a
/// scale of those: value = code * (scale * super-block scale) + minimum.
inline void pack_toy6_pieces(std::span<const float> values, const ops::RowPieces& to) {
  auto* codes = static_cast<uint8_t*>(to.codes);
  auto* scales = static_cast<uint8_t*>(to.scales);
  auto* minima = static_cast<float*>(to.minima);
  auto* super_scales = static_cast<float*>(to.super_scales);
  std::memset(codes, 0, (values.size() * 6 + 7) / 8);
  const auto block_at = [&](size_t first) {
    return values.subspan(first, std::min<size_t>(16, values.size() - first));
  };
  for (size_t start = 0; start < values.size(); start += 64) {
    const size_t end = std::min(start + 64, values.size());
    float largest = 0;
    for (size_t first = start; first < end; first += 16) {
      const auto [low, high] = std::ranges::minmax(block_at(first));
      largest = std::max(largest, (high - low) / 63);
    }
    const float super = super_scales[start / 64] = largest / 255;
    for (size_t first = start; first < end; first += 16) {
      const auto block = block_at(first);
      const auto [low, high] = std::ranges::minmax(block);
      const float whole = super > 0 ? std::ceil((high - low) / 63 / super) : 0.0f;
      scales[first / 16] = static_cast<uint8_t>(std::min(whole, 255.0f));
      minima[first / 16] = low;
      const uint8_t scale = scales[first / 16];
      const float step = static_cast<float>(scale) * super;
      for (size_t i = 0; i < block.size(); ++i) {
        const float t = step > 0 ? std::nearbyint((block[i] - low) / step) : 0.0f;
        write_code(codes, first + i, static_cast<int>(std::clamp(t, 0.0f, 63.0f)));
      }
    }
  }
}
inline void unpack_toy6_pieces(const ops::RowPieces& from, std::span<float> values) {
  const auto* codes = static_cast<const uint8_t*>(from.codes);
  const auto* scales = static_cast<const uint8_t*>(from.scales);
  const auto* minima = static_cast<const float*>(from.minima);
  const auto* super_scales = static_cast<const float*>(from.super_scales);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t scale = scales[i / 16];
    const float step = static_cast<float>(scale) * super_scales[i / 64];
    values[i] = static_cast<float>(read_code(codes, i)) * step + minima[i / 16];
  }
}

inline constexpr ops::FormatRow kToy6{.name = "toy6",
                                      .kind = ops::FormatKind::blocks,
                                      .bits = 6,
                                      .block = 32,
                                      .block_bytes = 26,
                                      .error = 0.0162,
                                      .pack = pack_toy6,
                                      .unpack = unpack_toy6};
inline constexpr ops::FormatRow kToy6Pieces{.name = "toy6_pieces",
                                            .kind = ops::FormatKind::separate,
                                            .bits = 6,
                                            .block = 16,
                                            .super_block = 64,
                                            .offset = ops::BlockOffset::minimum,
                                            .scale_type = Dtype::u8,
                                            .error = 0.0165,
                                            .repacks = false,
                                            .pack = pack_toy6_pieces,
                                            .unpack = unpack_toy6_pieces};

/// Every format that is packed here: those of the table, and the two above.
inline std::vector<ops::WeightFormat> packed_formats() {
  std::vector<ops::WeightFormat> formats;
  for (const ops::FormatRow& row : ops::kWeightFormats)
    if (row.pack != nullptr) formats.emplace_back(row);
  formats.emplace_back(kToy6);
  formats.emplace_back(kToy6Pieces);
  return formats;
}

}  // namespace mixtral::testing
