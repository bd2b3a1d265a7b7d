#include "ops/format_levels.h"

#include <bit>

#include "ops/half_bytes.h"
#include "ops/weight_format.h"

// GGUF's formats of 4 bits whose codes are places in a list of levels (ggml-common.h, block_iq4_nl,
// block_iq4_xs and block_mxfp4; ggml-quants.c). Of 32 elements, byte j holds the codes of elements
// j and, above it, j + 16.
namespace mixtral::ops {
namespace {

constexpr size_t kLevelsBlock = 32;

/// Twice the values of a 4-bit float e2m1 (OCP Microscaling Formats 1.0).
constexpr int8_t kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void unpack_levels(const uint8_t* codes, const int8_t (&levels)[16], float scale, float* block) {
  for (size_t j = 0; j < kLevelsBlock / 2; ++j) {
    block[j] = scale * static_cast<float>(levels[codes[j] & 15]);
    block[j + kLevelsBlock / 2] = scale * static_cast<float>(levels[codes[j] >> 4]);
  }
}

/// Half of the power of two that an e8m0 stands for, 2^(code - 128).
float half_e8m0(uint8_t code) {
  return std::bit_cast<float>(code < 2 ? 0x00200000u << code
                                       : static_cast<uint32_t>(code - 1) << 23);
}

}  // namespace

// The scale in f16, 16 bytes of codes.
void unpack_iq4_nl(const RowPieces& from, std::span<float> values) {
  const auto* bytes = static_cast<const uint8_t*>(from.codes);
  for (size_t first = 0; first < values.size(); first += kLevelsBlock, bytes += 18)
    unpack_levels(bytes + 2, kIq4Levels, read_half(bytes), values.data() + first);
}

// Super-blocks of 256: the scale in f16, eight blocks' scales of 6 bits less 32 (two bytes of their
// high two bits, four of their low four), and 128 bytes of codes.
void unpack_iq4_xs(const RowPieces& from, std::span<float> values) {
  const auto* bytes = static_cast<const uint8_t*>(from.codes);
  for (size_t first = 0; first < values.size(); first += 8 * kLevelsBlock, bytes += 136) {
    const float scale = read_half(bytes);
    for (size_t j = 0; j < 8; ++j) {
      const int low = bytes[4 + j / 2] >> (j % 2 * 4) & 15;
      const int high = bytes[2 + j / 4] >> (j % 4 * 2) & 3;
      unpack_levels(bytes + 8 + 16 * j, kIq4Levels,
                    scale * static_cast<float>((low | high << 4) - 32),
                    values.data() + first + kLevelsBlock * j);
    }
  }
}

// The scale, a power of two, in a byte; 16 bytes of codes.
void unpack_mxfp4(const RowPieces& from, std::span<float> values) {
  const auto* bytes = static_cast<const uint8_t*>(from.codes);
  for (size_t first = 0; first < values.size(); first += kLevelsBlock, bytes += 17)
    unpack_levels(bytes + 1, kTwiceE2m1, half_e8m0(bytes[0]), values.data() + first);
}

}  // namespace mixtral::ops
