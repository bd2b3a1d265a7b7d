#include "ops/quantize.h"

#include <algorithm>
#include <cmath>

#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

/// Calls body(row, block, first, last) for the columns [first, last) of every block.
template <class Body>
void for_each_block(ops::Quantization quantization, const Tensor& values, const Body& body) {
  const int64_t columns = values.dim(1), size = ops::block_of(quantization);
  for (int64_t row = 0; row < values.dim(0); ++row)
    for (int64_t first = 0; first < columns; first += size)
      body(row, first / size, first, std::min(first + size, columns));
}

/// Codes by row and column, whichever way they are stored.
class Codes {
 public:
  Codes(const Tensor& codes, ops::Quantization quantization)
      : bytes_(codes.as<uint8_t>()),
        row_bytes_(codes.dim(1)),
        packed_(quantization == ops::Quantization::nf4) {}

  int get(int64_t row, int64_t column) const {
    if (!packed_) return byte(row, column);
    return byte(row, column / 2) >> (column % 2 * 4) & 15;
  }
  /// Columns must be set from left to right.
  void set(int64_t row, int64_t column, int code) const {
    if (!packed_)
      byte(row, column) = static_cast<uint8_t>(code);
    else if (column % 2 == 0)
      byte(row, column / 2) = static_cast<uint8_t>(code);
    else
      byte(row, column / 2) = static_cast<uint8_t>(byte(row, column / 2) | code << 4);
  }

 private:
  uint8_t& byte(int64_t row, int64_t i) const { return bytes_[row * row_bytes_ + i]; }

  uint8_t* bytes_;
  int64_t row_bytes_;
  bool packed_;
};

int nearest_level(float t) {
  int level = 0;
  while (level < 15 && t > ops::normal_midpoint(level)) ++level;
  return level;
}

}  // namespace

void RefBackend::run(const ops::Quantize& op) {
  const Floats x(op.x), scales(op.scales);
  const Codes codes(op.codes, op.quantization);
  const bool fp8 = op.quantization == ops::Quantization::fp8;
  for_each_block(op.quantization, op.x, [&](int64_t row, int64_t b, int64_t first, int64_t last) {
    auto value = [&](int64_t column) { return static_cast<float>(double{x(row, column)}); };
    float largest = 0;
    for (int64_t i = first; i < last; ++i) largest = std::max(largest, std::abs(value(i)));
    float scale = largest;
    if (fp8 && largest > 0)
      scale = std::bit_cast<float>(ops::fp8_scale_bits(std::bit_cast<uint32_t>(largest)));
    scales(row, b) = static_cast<double>(scale);
    for (int64_t i = first; i < last; ++i) {
      const float t = largest > 0 ? value(i) / scale : 0.0f;
      codes.set(row, i, fp8 ? ops::to_e4m3(t) : nearest_level(t));
    }
  });
}

void RefBackend::run(const ops::Dequantize& op) {
  const Floats y(op.y), scales(op.scales);
  const Codes codes(op.codes, op.quantization);
  for_each_block(op.quantization, op.y, [&](int64_t row, int64_t b, int64_t first, int64_t last) {
    const auto scale = static_cast<float>(double{scales(row, b)});
    for (int64_t i = first; i < last; ++i) {
      const int code = codes.get(row, i);
      const float value = op.quantization == ops::Quantization::fp8
                              ? ops::from_e4m3(static_cast<uint8_t>(code))
                              : ops::kNormalLevels[code];
      y(row, i) = static_cast<double>(value * scale);
    }
  });
}

}  // namespace mixtral::ref
