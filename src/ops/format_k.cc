#include "ops/half_bytes.h"
#include "ops/weight_format.h"

// GGUF's K formats: super-blocks of 256 with scales (and minima) in f16, blocks of 16 or 32 in them
// whose own scales are of 4, 6 or 8 bits. Layouts: ggml-common.h, block_q2_K to block_q6_K; values:
// ggml-quants.c, dequantize_row_*, to the bit. Codes of 2 bits stand in 32 bytes for 128 elements:
// byte l has those of elements l, l + 32, l + 64 and l + 96, the first lowest.
namespace mixtral::ops {
namespace {

constexpr size_t kSuperBlock = 256;

/// Calls body(256 numbers, the super-block's bytes).
template <size_t bytes, class Body>
void for_super_blocks(std::span<float> values, const void* codes, const Body& body) {
  const auto* from = static_cast<const uint8_t*>(codes);
  for (size_t first = 0; first < values.size(); first += kSuperBlock, from += bytes)
    body(values.subspan(first, kSuperBlock), from);
}

/// The code of 2 bits of an element.
int two_bits(const uint8_t* codes, size_t i) {
  return codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

struct ScaleAndMinimum {
  int scale, minimum;
};
/// Those of block `j` of 8 in q4_k and q5_k, of 6 bits each, in 12 bytes: the first four blocks'
/// fill the low bits of eight bytes; the others' low four bits share the last four bytes, and their
/// high two are the high two of the first eight.
ScaleAndMinimum scale_and_minimum(const uint8_t* bytes, size_t j) {
  if (j < 4) return {bytes[j] & 63, bytes[j + 4] & 63};
  return {(bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4, (bytes[j + 4] >> 4) | (bytes[j] >> 6)
                                                                                    << 4};
}

/// The scale of block `k` of 16 in q3_k, of 6 bits, less 32.
int q3_scale(const uint8_t* bytes, size_t k) {
  const int low = k < 8 ? bytes[k] & 15 : bytes[k - 8] >> 4;
  return (low | (bytes[8 + k % 4] >> (k / 4 * 2) & 3) << 4) - 32;
}

}  // namespace

// 16 bytes of a scale (low) and a minimum (high) of 4 bits; 64 of codes; scale and minimum in f16.
void unpack_q2_k(const RowPieces& from, std::span<float> values) {
  for_super_blocks<84>(values, from.codes, [](auto block, const uint8_t* bytes) {
    const float scale = read_half(bytes + 80), minimum = read_half(bytes + 82);
    for (size_t first = 0; first < kSuperBlock; first += 16) {
      const uint8_t both = bytes[first / 16];
      const float step = scale * static_cast<float>(both & 15);
      const float least = minimum * static_cast<float>(both >> 4);
      for (size_t i = first; i < first + 16; ++i)
        block[i] = step * static_cast<float>(two_bits(bytes + 16, i)) - least;
    }
  });
}

// 32 bytes of third bits (bit j of byte l: element l + 32 j), inverted: without it a code is 4
// less; 64 of codes; 12 of scales; the scale in f16.
void unpack_q3_k(const RowPieces& from, std::span<float> values) {
  for_super_blocks<110>(values, from.codes, [](auto block, const uint8_t* bytes) {
    const float scale = read_half(bytes + 108);
    for (size_t first = 0; first < kSuperBlock; first += 16) {
      const float step = scale * static_cast<float>(q3_scale(bytes + 96, first / 16));
      for (size_t i = first; i < first + 16; ++i) {
        const int high = bytes[i % 32] >> (i / 32) & 1;
        block[i] = step * static_cast<float>(two_bits(bytes + 32, i) - (high != 0 ? 0 : 4));
      }
    }
  });
}

// Scale and minimum in f16; 12 bytes of blocks' scales and minima; 128 of codes: 32 bytes for 64
// elements, byte l has those of elements l (low) and l + 32.
void unpack_q4_k(const RowPieces& from, std::span<float> values) {
  for_super_blocks<144>(values, from.codes, [](auto block, const uint8_t* bytes) {
    const float scale = read_half(bytes), minimum = read_half(bytes + 2);
    for (size_t j = 0; j < 8; ++j) {
      const auto own = scale_and_minimum(bytes + 4, j);
      const float step = scale * static_cast<float>(own.scale);
      const float least = minimum * static_cast<float>(own.minimum);
      const uint8_t* codes = bytes + 16 + j / 2 * 32;
      for (size_t l = 0; l < 32; ++l)
        block[32 * j + l] = step * static_cast<float>(codes[l] >> (j % 2 * 4) & 15) - least;
    }
  });
}

// As q4_k, with 32 bytes of fifth bits before the codes: bit j of byte l is that of element
// 32 j + l.
void unpack_q5_k(const RowPieces& from, std::span<float> values) {
  for_super_blocks<176>(values, from.codes, [](auto block, const uint8_t* bytes) {
    const float scale = read_half(bytes), minimum = read_half(bytes + 2);
    for (size_t j = 0; j < 8; ++j) {
      const auto own = scale_and_minimum(bytes + 4, j);
      const float step = scale * static_cast<float>(own.scale);
      const float least = minimum * static_cast<float>(own.minimum);
      const uint8_t *high = bytes + 16, *codes = bytes + 48 + j / 2 * 32;
      for (size_t l = 0; l < 32; ++l) {
        const int code = (codes[l] >> (j % 2 * 4) & 15) | (high[l] >> j & 1) << 4;
        block[32 * j + l] = step * static_cast<float>(code) - least;
      }
    }
  });
}

// For each 128 elements, 64 bytes of low four bits (byte l: elements l and l + 64; byte 32 + l:
// l + 32 and l + 96); then 32 bytes each of high two bits; 16 scales of 8 bits; the scale in f16.
void unpack_q6_k(const RowPieces& from, std::span<float> values) {
  for_super_blocks<210>(values, from.codes, [](auto block, const uint8_t* bytes) {
    const float scale = read_half(bytes + 208);
    for (size_t i = 0; i < kSuperBlock; ++i) {
      const size_t quarter = i % 128 / 32, l = i % 32;
      const uint8_t low = bytes[i / 128 * 64 + quarter % 2 * 32 + l];
      const int code = (low >> (quarter / 2 * 4) & 15) | two_bits(bytes + 128, i) << 4;
      const auto own = static_cast<float>(static_cast<int8_t>(bytes[192 + i / 16]));
      block[i] = scale * own * static_cast<float>(code - 32);
    }
  });
}

}  // namespace mixtral::ops
