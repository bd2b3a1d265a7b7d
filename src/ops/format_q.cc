#include "ops/format_q.h"

#include <algorithm>
#include <cmath>

#include "ops/half_bytes.h"
#include "ops/scale_search.h"
#include "ops/weight_format.h"

// GGUF's plain formats: blocks of 32, a scale in f16 (in q4_1 and q5_1 a minimum in f16 behind it),
// then the codes. Of 4 or 5 bits, byte j holds the low four bits of element j and, above them, of
// element j + 16; the fifth bits stand before, bit i of 32 that of element i. Rounding is that of
// ggml's reference, to the byte (ggml-quants.c, quantize_row_*_ref).
namespace mixtral::ops {
namespace {

constexpr size_t kPlainBlock = 32;

/// Calls body(32 numbers, the block's bytes).
template <size_t bytes, class Values, class Byte, class Body>
void for_blocks(std::span<Values> values, Byte* codes, const Body& body) {
  for (size_t first = 0; first < values.size(); first += kPlainBlock, codes += bytes)
    body(values.subspan(first, kPlainBlock), codes);
}

/// The value of largest magnitude, with its sign; the first of equals.
float extreme(std::span<const float> block) {
  float largest = 0, found = 0;
  for (const float value : block) {
    if (!(std::abs(value) > largest)) continue;
    largest = std::abs(value);
    found = value;
  }
  return found;
}

int truncated(float value) { return static_cast<int8_t>(value); }

void write_fours(const int (&codes)[kPlainBlock], uint8_t* to) {
  for (size_t j = 0; j < kPlainBlock / 2; ++j)
    to[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + kPlainBlock / 2] & 15) << 4);
}

void write_fives(const int (&codes)[kPlainBlock], uint8_t* to) {
  uint32_t high = 0;
  for (size_t i = 0; i < kPlainBlock; ++i) high |= (static_cast<uint32_t>(codes[i]) >> 4 & 1u) << i;
  std::memcpy(to, &high, sizeof high);
  write_fours(codes, to + sizeof high);
}

/// Calls put(element, code).
template <class Put>
void read_fours(const uint8_t* from, const Put& put) {
  for (size_t j = 0; j < kPlainBlock / 2; ++j) {
    put(j, from[j] & 15);
    put(j + kPlainBlock / 2, from[j] >> 4);
  }
}

template <class Put>
void read_fives(const uint8_t* from, const Put& put) {
  uint32_t high = 0;
  std::memcpy(&high, from, sizeof high);
  read_fours(from + sizeof high,
             [&](size_t i, int low) { put(i, low | static_cast<int>(high >> i & 1u) << 4); });
}

/// Codes around the middle `half`: value = (code - half) * scale, where the scale takes the extreme
/// value to code 0.
float centred_codes(std::span<const float> block, int half, int (&codes)[kPlainBlock]) {
  const float scale = extreme(block) / static_cast<float>(-half), reciprocal = inverse(scale);
  for (size_t i = 0; i < kPlainBlock; ++i)
    codes[i] = std::min(2 * half - 1,
                        truncated(block[i] * reciprocal + (static_cast<float>(half) + 0.5f)));
  return scale;
}

struct Affine {
  float scale, minimum;
};
/// Codes above the minimum: value = code * scale + minimum.
Affine affine_codes(std::span<const float> block, int most, int (&codes)[kPlainBlock]) {
  const auto [least, greatest] = std::ranges::minmax(block);
  const float scale = (greatest - least) / static_cast<float>(most), reciprocal = inverse(scale);
  for (size_t i = 0; i < kPlainBlock; ++i)
    codes[i] = std::min(most, truncated((block[i] - least) * reciprocal + 0.5f));
  return {scale, least};
}

/// A type whose codes lie around a middle: q4_0, q5_0 and q8_0.
struct CentredType {
  int zero;
  size_t bytes;                                            // of a block
  void (*put)(const int (&codes)[kPlainBlock], uint8_t*);  // behind the scale
};
constexpr CentredType kFours{8, 18, write_fours}, kFives{16, 22, write_fives};
// Without the code for -128 times the scale: other programs multiply by magnitudes of 7 bits.
constexpr CentredType kEights{127, 34, [](const int (&codes)[kPlainBlock], uint8_t* to) {
                                for (size_t i = 0; i < kPlainBlock; ++i)
                                  to[i] = static_cast<uint8_t>(codes[i] - 127);
                              }};

class CentredRounder : public BlockRounder {
 public:
  CentredRounder(const CentredType& type, void* to) : type_(type), to_(static_cast<uint8_t*>(to)) {}

  size_t unit() const override { return kPlainBlock; }
  size_t block() const override { return kPlainBlock; }
  void open(const float* values, const float* weights) override {
    scale_ = static_cast<float>(f16(search_signed(signed_block(), values, weights)));
  }
  void open_block(size_t, const float*, const float*) override {}
  float round(size_t i, float value) override {
    codes_[i] = signed_code(signed_block(), value, scale_);
    return static_cast<float>(codes_[i] - type_.zero) * scale_;
  }
  void close(size_t index) override {
    uint8_t* bytes = to_ + index * type_.bytes;
    write_half(bytes, scale_);
    type_.put(codes_, bytes + 2);
  }

 private:
  SignedBlock signed_block() const { return {.size = kPlainBlock, .zero = type_.zero}; }

  const CentredType& type_;
  uint8_t* to_;
  float scale_ = 0;
  int codes_[kPlainBlock] = {};
};

}  // namespace

std::unique_ptr<BlockRounder> make_q_rounder(std::string_view format, void* to) {
  if (format == "q4_0") return std::make_unique<CentredRounder>(kFours, to);
  if (format == "q5_0") return std::make_unique<CentredRounder>(kFives, to);
  if (format == "q8_0") return std::make_unique<CentredRounder>(kEights, to);
  return nullptr;
}

void pack_q8_0(std::span<const float> values, const RowPieces& to) {
  for_blocks<34>(values, static_cast<uint8_t*>(to.codes), [](auto block, uint8_t* bytes) {
    const float scale = std::abs(extreme(block)) / 127, reciprocal = inverse(scale);
    write_half(bytes, scale);
    for (size_t i = 0; i < kPlainBlock; ++i)
      bytes[2 + i] = static_cast<uint8_t>(static_cast<int>(std::round(block[i] * reciprocal)));
  });
}

void unpack_q8_0(const RowPieces& from, std::span<float> values) {
  for_blocks<34>(values, static_cast<const uint8_t*>(from.codes),
                 [](auto block, const uint8_t* bytes) {
                   const float scale = read_half(bytes);
                   for (size_t i = 0; i < kPlainBlock; ++i)
                     block[i] = static_cast<float>(static_cast<int8_t>(bytes[2 + i])) * scale;
                 });
}

void pack_q4_0(std::span<const float> values, const RowPieces& to) {
  for_blocks<18>(values, static_cast<uint8_t*>(to.codes), [](auto block, uint8_t* bytes) {
    int codes[kPlainBlock];
    write_half(bytes, centred_codes(block, 8, codes));
    write_fours(codes, bytes + 2);
  });
}

void unpack_q4_0(const RowPieces& from, std::span<float> values) {
  for_blocks<18>(
      values, static_cast<const uint8_t*>(from.codes), [](auto block, const uint8_t* bytes) {
        const float scale = read_half(bytes);
        read_fours(bytes + 2,
                   [&](size_t i, int code) { block[i] = static_cast<float>(code - 8) * scale; });
      });
}

void pack_q4_1(std::span<const float> values, const RowPieces& to) {
  for_blocks<20>(values, static_cast<uint8_t*>(to.codes), [](auto block, uint8_t* bytes) {
    int codes[kPlainBlock];
    const Affine affine = affine_codes(block, 15, codes);
    write_half(bytes, affine.scale);
    write_half(bytes + 2, affine.minimum);
    write_fours(codes, bytes + 4);
  });
}

void unpack_q4_1(const RowPieces& from, std::span<float> values) {
  for_blocks<20>(values, static_cast<const uint8_t*>(from.codes),
                 [](auto block, const uint8_t* bytes) {
                   const float scale = read_half(bytes), minimum = read_half(bytes + 2);
                   read_fours(bytes + 4, [&](size_t i, int code) {
                     block[i] = static_cast<float>(code) * scale + minimum;
                   });
                 });
}

void pack_q5_0(std::span<const float> values, const RowPieces& to) {
  for_blocks<22>(values, static_cast<uint8_t*>(to.codes), [](auto block, uint8_t* bytes) {
    int codes[kPlainBlock];
    write_half(bytes, centred_codes(block, 16, codes));
    write_fives(codes, bytes + 2);
  });
}

void unpack_q5_0(const RowPieces& from, std::span<float> values) {
  for_blocks<22>(
      values, static_cast<const uint8_t*>(from.codes), [](auto block, const uint8_t* bytes) {
        const float scale = read_half(bytes);
        read_fives(bytes + 2,
                   [&](size_t i, int code) { block[i] = static_cast<float>(code - 16) * scale; });
      });
}

void pack_q5_1(std::span<const float> values, const RowPieces& to) {
  for_blocks<24>(values, static_cast<uint8_t*>(to.codes), [](auto block, uint8_t* bytes) {
    int codes[kPlainBlock];
    const Affine affine = affine_codes(block, 31, codes);
    write_half(bytes, affine.scale);
    write_half(bytes + 2, affine.minimum);
    write_fives(codes, bytes + 4);
  });
}

void unpack_q5_1(const RowPieces& from, std::span<float> values) {
  for_blocks<24>(values, static_cast<const uint8_t*>(from.codes),
                 [](auto block, const uint8_t* bytes) {
                   const float scale = read_half(bytes), minimum = read_half(bytes + 2);
                   read_fives(bytes + 4, [&](size_t i, int code) {
                     block[i] = static_cast<float>(code) * scale + minimum;
                   });
                 });
}

}  // namespace mixtral::ops
