// Packs numbers into ggml's types Q4_K, Q5_K and Q6_K (their layout: ggml-common.h, block_q4_K and
// so on). The search for scales is this program's own:
// 1. Each block tries a few steps around (max - min) / levels; for the codes that a step gives, the
//    best scale and minimum follow by weighted least squares.
// 2. Scales and minima are rounded to codes of the super-block's own scales.
// 3. Each block then tries the neighbours of its rounded scale and minimum, with the numbers
//    rounded again under each, because rounding the scale moved the best codes.
#include "ops/format_k_pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace mixtral::ops {
namespace {

constexpr size_t kSuper = 256;

template <size_t N>
using Numbers = std::array<float, N>;
template <size_t N>
using Codes = std::array<uint8_t, N>;

void put_f16(uint8_t* to, float value) {
  const f16 half(value);
  std::memcpy(to, &half.bits, 2);
}

float rounded_f16(float value) { return static_cast<float>(f16(value)); }

/// The weight of each number's squared error.
Numbers<kSuper> error_weights(const float* x, const float* importance) {
  float squares = 0;
  for (size_t i = 0; i < kSuper; ++i) squares += x[i] * x[i];
  const float mean = squares / kSuper, deviation = std::sqrt(mean);
  Numbers<kSuper> weights;
  for (size_t i = 0; i < kSuper; ++i)
    weights[i] =
        importance ? importance[i] * std::sqrt(2 * mean + x[i] * x[i]) : deviation + std::abs(x[i]);
  // Weights of zero would leave a block without a scale.
  const float least = 1e-12f * *std::ranges::max_element(weights);
  for (float& weight : weights) weight = std::max(weight, least);
  return weights;
}

/// Numbers as scale * code - minimum, with minimum >= 0.
struct Affine {
  float scale = 0, minimum = 0;
};

/// The nearest codes under a scale and a minimum, and their weighted squared error.
template <size_t N>
float round_affine(const float* x, const float* w, Affine to, int levels, Codes<N>& codes) {
  const float inverse = to.scale > 0 ? 1 / to.scale : 0;
  const float top = static_cast<float>(levels) + 0.5f;
  float error = 0;
  for (size_t i = 0; i < N; ++i) {
    const float at = std::clamp((x[i] + to.minimum) * inverse + 0.5f, 0.f, top);
    const int code = std::min(static_cast<int>(at), levels);
    const float off = to.scale * static_cast<float>(code) - to.minimum - x[i];
    error += w[i] * off * off;
    codes[i] = static_cast<uint8_t>(code);
  }
  return error;
}

/// The best scale and minimum for given codes: weighted least squares, where the minimum may not
/// be negative.
template <size_t N>
Affine fit_affine(const float* x, const float* w, const Codes<N>& codes) {
  float sum_w = 0, sum_x = 0, sum_q = 0, sum_qq = 0, sum_xq = 0;
  for (size_t i = 0; i < N; ++i) {
    const auto q = static_cast<float>(codes[i]);
    sum_w += w[i];
    sum_x += w[i] * x[i];
    sum_q += w[i] * q;
    sum_qq += w[i] * q * q;
    sum_xq += w[i] * x[i] * q;
  }
  const float determinant = sum_w * sum_qq - sum_q * sum_q;
  Affine fit;
  if (determinant > 0) {
    fit.scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
    fit.minimum = (sum_q * sum_xq - sum_qq * sum_x) / determinant;
  }
  if (!(determinant > 0) || fit.minimum < 0) fit = {sum_qq > 0 ? sum_xq / sum_qq : 0, 0};
  return fit.scale > 0 ? fit : Affine{};
}

template <size_t N>
Affine search_affine(const float* x, const float* w, int levels) {
  const auto [low, high] = std::minmax_element(x, x + N);
  const float least = std::min(*low, 0.f), range = *high - least;
  Affine best{0, -least};
  Codes<N> codes;
  float best_error = round_affine<N>(x, w, best, levels, codes);
  if (!(range > 0)) return best;
  for (int step = -10; step <= 10; ++step) {
    const float all = static_cast<float>(levels) + 0.1f * static_cast<float>(step);
    round_affine<N>(x, w, {range / all, -least}, levels, codes);
    const Affine fit = fit_affine<N>(x, w, codes);
    const float error = round_affine<N>(x, w, fit, levels, codes);
    if (error < best_error) {
      best_error = error;
      best = fit;
    }
  }
  return best;
}

constexpr size_t kBlock = 32, kBlocks = kSuper / kBlock;

/// A super-block of Q4_K or Q5_K before its bits are put together.
struct AffineSuper {
  float scale = 0, minimum = 0;                     // of the codes below
  std::array<uint8_t, kBlocks> scales{}, minima{};  // 6 bits each
  std::array<Codes<kBlock>, kBlocks> codes{};
};

/// Tries the neighbours of a block's rounded scale and minimum, and leaves the best codes.
void refine(const float* x, const float* w, int levels, size_t block, AffineSuper& super) {
  const int scale = super.scales[block], minimum = super.minima[block];
  float best = -1;
  Codes<kBlock> codes;
  for (int s = std::max(0, scale - 1); s <= std::min(63, scale + 1); ++s) {
    for (int m = std::max(0, minimum - 1); m <= std::min(63, minimum + 1); ++m) {
      const Affine as{super.scale * static_cast<float>(s), super.minimum * static_cast<float>(m)};
      const float error = round_affine<kBlock>(x, w, as, levels, codes);
      if (best >= 0 && !(error < best)) continue;
      best = error;
      super.scales[block] = static_cast<uint8_t>(s);
      super.minima[block] = static_cast<uint8_t>(m);
      super.codes[block] = codes;
    }
  }
}

AffineSuper pack_affine(const float* x, const float* importance, int levels) {
  const Numbers<kSuper> w = error_weights(x, importance);
  std::array<Affine, kBlocks> blocks;
  float most_scale = 0, most_minimum = 0;
  for (size_t b = 0; b < kBlocks; ++b) {
    blocks[b] = search_affine<kBlock>(x + b * kBlock, w.data() + b * kBlock, levels);
    most_scale = std::max(most_scale, blocks[b].scale);
    most_minimum = std::max(most_minimum, blocks[b].minimum);
  }
  AffineSuper super;
  super.scale = rounded_f16(most_scale / 63);
  super.minimum = rounded_f16(most_minimum / 63);
  const auto code = [](float value, float unit) {
    return unit > 0 ? static_cast<uint8_t>(std::clamp(std::round(value / unit), 0.f, 63.f)) : 0;
  };
  for (size_t b = 0; b < kBlocks; ++b) {
    super.scales[b] = static_cast<uint8_t>(code(blocks[b].scale, super.scale));
    super.minima[b] = static_cast<uint8_t>(code(blocks[b].minimum, super.minimum));
    refine(x + b * kBlock, w.data() + b * kBlock, levels, b, super);
  }
  return super;
}

/// Scale, minimum, and the 16 codes of 6 bits in 12 bytes.
void put_header(const AffineSuper& super, uint8_t* to) {
  put_f16(to, super.scale);
  put_f16(to + 2, super.minimum);
  uint8_t* packed = to + 4;
  for (size_t i = 0; i < 4; ++i) {
    packed[i] = static_cast<uint8_t>(super.scales[i] | super.scales[i + 4] >> 4 << 6);
    packed[i + 4] = static_cast<uint8_t>(super.minima[i] | super.minima[i + 4] >> 4 << 6);
    packed[i + 8] = static_cast<uint8_t>((super.scales[i + 4] & 15) | super.minima[i + 4] << 4);
  }
}

/// The low four bits of all codes: two blocks share 32 bytes.
void put_nibbles(const AffineSuper& super, uint8_t* to) {
  for (size_t pair = 0; pair < kBlocks / 2; ++pair)
    for (size_t i = 0; i < kBlock; ++i)
      to[pair * kBlock + i] =
          static_cast<uint8_t>((super.codes[2 * pair][i] & 15) | super.codes[2 * pair + 1][i] << 4);
}

/// Numbers as scale * (code - 32).
constexpr size_t kSmall = 16, kSmalls = kSuper / kSmall;

float round_signed(const float* x, const float* w, float scale, Codes<kSmall>& codes) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  float error = 0;
  for (size_t i = 0; i < kSmall; ++i) {
    const float at = std::clamp(x[i] * inverse + 32.5f, 0.f, 63.5f);
    const int code = std::min(static_cast<int>(at), 63);
    const float off = scale * static_cast<float>(code - 32) - x[i];
    error += w[i] * off * off;
    codes[i] = static_cast<uint8_t>(code);
  }
  return error;
}

float search_signed(const float* x, const float* w) {
  float most = 0;
  for (size_t i = 0; i < kSmall; ++i)
    if (std::abs(x[i]) > std::abs(most)) most = x[i];
  if (most == 0) return 0;
  Codes<kSmall> codes;
  float best = 0, best_error = -1;
  for (int step = -9; step <= 9; ++step) {
    // The largest number is put at the side that has one code more.
    const float first = most / (-32 - 0.1f * static_cast<float>(step));
    round_signed(x, w, first, codes);
    float sum_qq = 0, sum_xq = 0;
    for (size_t i = 0; i < kSmall; ++i) {
      const auto q = static_cast<float>(codes[i]) - 32;
      sum_qq += w[i] * q * q;
      sum_xq += w[i] * x[i] * q;
    }
    const float scale = sum_qq > 0 ? sum_xq / sum_qq : 0;
    const float error = round_signed(x, w, scale, codes);
    if (best_error >= 0 && !(error < best_error)) continue;
    best_error = error;
    best = scale;
  }
  return best;
}

void pack_q6_super(const float* x, const float* importance, uint8_t* to) {
  const Numbers<kSuper> w = error_weights(x, importance);
  Numbers<kSmalls> scales;
  float most = 0;
  for (size_t b = 0; b < kSmalls; ++b) {
    scales[b] = search_signed(x + b * kSmall, w.data() + b * kSmall);
    if (std::abs(scales[b]) > std::abs(most)) most = scales[b];
  }
  const float unit = rounded_f16(most / -128);
  std::array<int8_t, kSmalls> scale_codes{};
  std::array<uint8_t, kSuper> codes{};
  for (size_t b = 0; b < kSmalls; ++b) {
    const int nearest =
        unit != 0 ? static_cast<int>(std::clamp(std::round(scales[b] / unit), -128.f, 127.f)) : 0;
    Codes<kSmall> block;
    float best = -1;
    for (int s = std::max(-128, nearest - 1); s <= std::min(127, nearest + 1); ++s) {
      const float error =
          round_signed(x + b * kSmall, w.data() + b * kSmall, unit * static_cast<float>(s), block);
      if (best >= 0 && !(error < best)) continue;
      best = error;
      scale_codes[b] = static_cast<int8_t>(s);
      std::ranges::copy(block, codes.begin() + static_cast<std::ptrdiff_t>(b * kSmall));
    }
  }
  uint8_t* low = to;         // 128 bytes
  uint8_t* high = to + 128;  // 64 bytes
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* q = codes.data() + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      low[half * 64 + i] = static_cast<uint8_t>((q[i] & 15) | (q[i + 64] & 15) << 4);
      low[half * 64 + 32 + i] = static_cast<uint8_t>((q[i + 32] & 15) | (q[i + 96] & 15) << 4);
      high[half * 32 + i] = static_cast<uint8_t>(q[i] >> 4 | q[i + 32] >> 4 << 2 |
                                                 q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6);
    }
  }
  std::memcpy(to + 192, scale_codes.data(), kSmalls);
  put_f16(to + 208, unit);
}

/// Calls pack(numbers, importance or null, bytes) for each super-block of a row.
template <class Pack>
void for_super_blocks(std::span<const float> values, std::span<const float> importance, void* to,
                      size_t bytes, const Pack& pack) {
  CHECK(values.size() % kSuper == 0 && (importance.empty() || importance.size() == values.size()));
  auto* out = static_cast<uint8_t*>(to);
  for (size_t i = 0; i < values.size(); i += kSuper, out += bytes)
    pack(values.data() + i, importance.empty() ? nullptr : importance.data() + i, out);
}

}  // namespace

void pack_q4_k(std::span<const float> values, std::span<const float> importance, void* to) {
  for_super_blocks(values, importance, to, 144, [](const float* x, const float* w, uint8_t* out) {
    const AffineSuper super = pack_affine(x, w, 15);
    put_header(super, out);
    put_nibbles(super, out + 16);
  });
}

void pack_q5_k(std::span<const float> values, std::span<const float> importance, void* to) {
  for_super_blocks(values, importance, to, 176, [](const float* x, const float* w, uint8_t* out) {
    const AffineSuper super = pack_affine(x, w, 31);
    put_header(super, out);
    for (size_t i = 0; i < kBlock; ++i) {
      int high = 0;  // the fifth bit of the codes in this place, a block each
      for (size_t b = 0; b < kBlocks; ++b) high |= super.codes[b][i] >> 4 << b;
      out[16 + i] = static_cast<uint8_t>(high);
    }
    put_nibbles(super, out + 48);
  });
}

void pack_q6_k(std::span<const float> values, std::span<const float> importance, void* to) {
  for_super_blocks(values, importance, to, 210, pack_q6_super);
}

void pack_q4_k(std::span<const float> values, const RowPieces& to) {
  pack_q4_k(values, {}, to.codes);
}
void pack_q5_k(std::span<const float> values, const RowPieces& to) {
  pack_q5_k(values, {}, to.codes);
}
void pack_q6_k(std::span<const float> values, const RowPieces& to) {
  pack_q6_k(values, {}, to.codes);
}

}  // namespace mixtral::ops
