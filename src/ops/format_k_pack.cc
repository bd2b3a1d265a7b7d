// Packs numbers into ggml's types Q4_K, Q5_K and Q6_K (their layout: ggml-common.h, block_q4_K and
// so on). The search for scales is this program's own:
// 1. Each block takes the best scale and minimum of many that are tried (scale_search.h).
// 2. Scales and minima are rounded to codes of the super-block's own scales.
// 3. Each block then tries the neighbours of its rounded scale, each with the minima around the
//    best one for it. Numbers are rounded again under each, because rounding the scale moved the
//    best codes.
// 4. The codes give the best scales of the super-block by least squares; under these, 3 is done
//    again. What comes out is taken where its error is less.
#include "ops/format_k_pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/scale_search.h"
#include "ops/weight_format.h"

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

/// The weight of each number's squared error where no text says more: large ones count a little
/// more.
Numbers<kSuper> error_weights(const float* x) {
  float squares = 0;
  for (size_t i = 0; i < kSuper; ++i) squares += x[i] * x[i];
  const float deviation = std::sqrt(squares / kSuper);
  Numbers<kSuper> weights;
  for (size_t i = 0; i < kSuper; ++i) weights[i] = deviation + std::abs(x[i]);
  // Weights of zero would leave a block without a scale.
  const float least = 1e-12f * *std::ranges::max_element(weights);
  for (float& weight : weights) weight = std::max(weight, least);
  return weights;
}

constexpr size_t kBlocks = kSuper / kAffineBlock;

/// A super-block of Q4_K or Q5_K before its bits are put together.
struct AffineSuper {
  float scale = 0, minimum = 0;                     // of the codes below
  std::array<uint8_t, kBlocks> scales{}, minima{};  // 6 bits each
  std::array<Codes<kAffineBlock>, kBlocks> codes{};
};

AffineScale scale_of(const AffineSuper& super, size_t block) {
  return {super.scale * static_cast<float>(super.scales[block]),
          super.minimum * static_cast<float>(super.minima[block])};
}

uint8_t affine_code(float x, AffineScale as, int levels) {
  const float at = (x + as.minimum) * inverse(as.scale) + 0.5f;
  return static_cast<uint8_t>(std::clamp(at, 0.f, static_cast<float>(levels) + 0.5f));
}

/// A code of 6 bits for a scale or minimum.
int unit_code(float value, float unit) {
  const float code = value / unit;
  // No "<": a unit of 0, or numbers too large to be squared, leave no number here.
  return code >= 0 ? static_cast<int>(std::min(std::round(code), 63.f)) : 0;
}

/// Rounds a block's scale and minimum, given the sums under them: takes the best of the codes
/// around the scale's, each with those around that of the best minimum for it. Returns the squared
/// error.
float settle(const float* x, const float* w, AffineScale best, const AffineSums& sums, int levels,
             size_t block, AffineSuper& super) {
  const int nearest = unit_code(best.scale, super.scale);
  std::array<std::array<uint8_t, 2>, 15> codes;
  std::array<AffineScale, 15> trials;
  size_t count = 0;
  for (int s = std::max(0, nearest - 2); s <= std::min(63, nearest + 2); ++s) {
    const float scale = super.scale * static_cast<float>(s);
    const int center = unit_code((scale * sums.q - sums.x) / sums.w, super.minimum);
    for (int m = std::max(0, center - 1); m <= std::min(63, center + 1); ++m) {
      codes[count] = {static_cast<uint8_t>(s), static_cast<uint8_t>(m)};
      trials[count++] = {scale, super.minimum * static_cast<float>(m)};
    }
  }
  const Trial found = best_affine(x, w, levels, trials.data(), count);
  super.scales[block] = codes[found.place][0];
  super.minima[block] = codes[found.place][1];
  return found.error;
}

/// The super-block's own scale and minimum for the best of each block.
AffineSuper begin_affine(const std::array<AffineScale, kBlocks>& blocks) {
  float most_scale = 0, most_minimum = 0;
  for (const AffineScale& block : blocks) {
    most_scale = std::max(most_scale, block.scale);
    most_minimum = std::max(most_minimum, block.minimum);
  }
  AffineSuper super;
  super.scale = rounded_f16(most_scale / 63);
  super.minimum = rounded_f16(most_minimum / 63);
  return super;
}

/// The super-block's scale and minimum that are best for the codes of the blocks and of their
/// numbers, by least squares. They are those of `super` where nothing better is known.
AffineSuper fit_affine_super(const AffineSuper& super,
                             const std::array<AffineSums, kBlocks>& sums) {
  double uu = 0, uv = 0, vv = 0, ux = 0, vx = 0;  // x is near scale u - minimum v
  for (size_t b = 0; b < kBlocks; ++b) {
    const double s = super.scales[b], m = super.minima[b];
    uu += s * s * sums[b].qq;
    uv += s * m * sums[b].q;
    vv += m * m * sums[b].w;
    ux += s * sums[b].xq;
    vx += m * sums[b].x;
  }
  const double determinant = uu * vv - uv * uv;
  const double scale = vv > 0 ? (ux * vv - uv * vx) / determinant : ux / uu;
  const double minimum = vv > 0 ? (ux * uv - uu * vx) / determinant : 0;
  AffineSuper fitted = super;
  const float unit = rounded_f16(static_cast<float>(scale));
  const float least = rounded_f16(static_cast<float>(minimum));
  if (unit > 0 && least >= 0 && std::isfinite(unit) && std::isfinite(least)) {
    fitted.scale = unit;
    fitted.minimum = least;
  }
  return fitted;
}

/// A super-block's scales and minima, all but the codes of its numbers.
AffineSuper search_super(const float* x, const float* w, int levels) {
  constexpr int kFits = 1;
  std::array<AffineScale, kBlocks> blocks;
  std::array<AffineSums, kBlocks> sums;
  for (size_t b = 0; b < kBlocks; ++b) {
    blocks[b] = search_affine(x + b * kAffineBlock, w + b * kAffineBlock, levels);
    sums[b] = affine_sums(x + b * kAffineBlock, w + b * kAffineBlock, levels, blocks[b]);
  }
  AffineSuper super = begin_affine(blocks), best;
  float least = std::numeric_limits<float>::infinity();
  for (int fit = 0;; ++fit) {
    float error = 0;
    for (size_t b = 0; b < kBlocks; ++b)
      error +=
          settle(x + b * kAffineBlock, w + b * kAffineBlock, blocks[b], sums[b], levels, b, super);
    if (fit == 0 || error < least) {
      best = super;
      least = error;
    }
    if (fit == kFits) return best;
    for (size_t b = 0; b < kBlocks; ++b) {
      blocks[b] = scale_of(super, b);
      sums[b] = affine_sums(x + b * kAffineBlock, w + b * kAffineBlock, levels, blocks[b]);
    }
    const AffineSuper fitted = fit_affine_super(super, sums);
    if (fitted.scale == super.scale && fitted.minimum == super.minimum) return best;
    super = fitted;
  }
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
    for (size_t i = 0; i < kAffineBlock; ++i)
      to[pair * kAffineBlock + i] =
          static_cast<uint8_t>((super.codes[2 * pair][i] & 15) | super.codes[2 * pair + 1][i] << 4);
}

constexpr size_t kSmall = 16, kSmalls = kSuper / kSmall;
constexpr SignedBlock kCodes{.size = kSmall, .zero = 32};  // of 6 bits

/// A super-block of Q6_K before its bits are put together.
struct SignedSuper {
  float unit = 0;  // of the scales' codes
  std::array<int8_t, kSmalls> scales{};
  std::array<uint8_t, kSuper> codes{};
};

SignedSuper begin_signed(const Numbers<kSmalls>& scales) {
  float most = 0;
  for (const float scale : scales)
    if (std::abs(scale) > std::abs(most)) most = scale;
  SignedSuper super;
  super.unit = rounded_f16(most / -128);
  return super;
}

float scale_of(const SignedSuper& super, size_t block) {
  return super.unit * static_cast<float>(super.scales[block]);
}

/// Rounds a block's scale: takes the best of the codes around it. Returns the squared error.
float settle(const float* x, const float* w, float scale, size_t block, SignedSuper& super) {
  constexpr int kAround = 3;
  const float ratio = scale / super.unit;
  const int nearest =
      std::isfinite(ratio) ? static_cast<int>(std::clamp(std::round(ratio), -128.f, 127.f)) : 0;
  std::array<float, 2 * kAround + 1> trials;
  size_t count = 0;
  const int first = std::max(-128, nearest - kAround);
  for (int s = first; s <= std::min(127, nearest + kAround); ++s)
    trials[count++] = super.unit * static_cast<float>(s);
  const Trial found = best_signed(kCodes, x, w, trials.data(), count);
  super.scales[block] = static_cast<int8_t>(first + static_cast<int>(found.place));
  return found.error;
}

/// The super-block's unit that is best for the codes of the blocks and of their numbers.
float fit_signed_unit(const float* x, const float* w, const SignedSuper& super) {
  double qq = 0, xq = 0;
  for (size_t b = 0; b < kSmalls; ++b) {
    const float scale = scale_of(super, b);
    float block_qq = 0, block_xq = 0;
    for (size_t i = b * kSmall; i < (b + 1) * kSmall; ++i) {
      const auto code = static_cast<float>(signed_code(kCodes, x[i], scale) - kCodes.zero);
      block_qq += w[i] * code * code;
      block_xq += w[i] * code * x[i];
    }
    const double s = super.scales[b];
    qq += s * s * block_qq;
    xq += s * block_xq;
  }
  const float unit = rounded_f16(static_cast<float>(xq / qq));
  return std::isfinite(unit) && unit != 0 ? unit : super.unit;
}

/// A super-block's unit and scales, all but the codes of its numbers.
SignedSuper search_signed_super(const float* x, const float* w) {
  Numbers<kSmalls> scales;
  for (size_t b = 0; b < kSmalls; ++b)
    scales[b] = search_signed(kCodes, x + b * kSmall, w + b * kSmall);
  const auto settle_all = [&](SignedSuper& super) {
    float error = 0;
    for (size_t b = 0; b < kSmalls; ++b)
      error += settle(x + b * kSmall, w + b * kSmall, scales[b], b, super);
    return error;
  };
  SignedSuper super = begin_signed(scales);
  const float error = settle_all(super);
  SignedSuper fitted = super;
  fitted.unit = fit_signed_unit(x, w, super);
  for (size_t b = 0; b < kSmalls; ++b) scales[b] = scale_of(super, b);
  return fitted.unit != super.unit && settle_all(fitted) < error ? fitted : super;
}

void put_q4(const AffineSuper& super, uint8_t* to) {
  put_header(super, to);
  put_nibbles(super, to + 16);
}

void put_q5(const AffineSuper& super, uint8_t* to) {
  put_header(super, to);
  for (size_t i = 0; i < kAffineBlock; ++i) {
    int high = 0;  // the fifth bit of the codes in this place, a block each
    for (size_t b = 0; b < kBlocks; ++b) high |= super.codes[b][i] >> 4 << b;
    to[16 + i] = static_cast<uint8_t>(high);
  }
  put_nibbles(super, to + 48);
}

void put_q6(const SignedSuper& super, uint8_t* to) {
  uint8_t* low = to;         // 128 bytes
  uint8_t* high = to + 128;  // 64 bytes
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* q = super.codes.data() + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      low[half * 64 + i] = static_cast<uint8_t>((q[i] & 15) | (q[i + 64] & 15) << 4);
      low[half * 64 + 32 + i] = static_cast<uint8_t>((q[i + 32] & 15) | (q[i + 96] & 15) << 4);
      high[half * 32 + i] = static_cast<uint8_t>(q[i] >> 4 | q[i + 32] >> 4 << 2 |
                                                 q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6);
    }
  }
  std::memcpy(to + 192, super.scales.data(), kSmalls);
  put_f16(to + 208, super.unit);
}

/// Q4_K and Q5_K.
struct AffineType {
  int levels;
  size_t bytes;  // of a super-block
  void (*put)(const AffineSuper&, uint8_t*);
};
constexpr AffineType kQ4{15, 144, put_q4}, kQ5{31, 176, put_q5};
constexpr size_t kQ6Bytes = 210;

class AffineRounder : public BlockRounder {
 public:
  AffineRounder(const AffineType& type, void* to) : type_(type), to_(static_cast<uint8_t*>(to)) {}

  size_t unit() const override { return kSuper; }
  size_t block() const override { return kAffineBlock; }
  void open(const float* values, const float* weights) override {
    super_ = search_super(values, weights, type_.levels);
  }
  void open_block(size_t index, const float* values, const float* weights) override {
    const AffineScale best = search_affine(values, weights, type_.levels);
    settle(values, weights, best, affine_sums(values, weights, type_.levels, best), type_.levels,
           index, super_);
  }
  float round(size_t i, float value) override {
    const size_t block = i / kAffineBlock;
    const AffineScale as = scale_of(super_, block);
    const uint8_t code = affine_code(value, as, type_.levels);
    super_.codes[block][i % kAffineBlock] = code;
    return as.scale * static_cast<float>(code) - as.minimum;
  }
  void close(size_t index) override { type_.put(super_, to_ + index * type_.bytes); }

 private:
  const AffineType& type_;
  uint8_t* to_;
  AffineSuper super_;
};

class SignedRounder : public BlockRounder {
 public:
  explicit SignedRounder(void* to) : to_(static_cast<uint8_t*>(to)) {}

  size_t unit() const override { return kSuper; }
  size_t block() const override { return kSmall; }
  void open(const float* values, const float* weights) override {
    super_ = search_signed_super(values, weights);
  }
  void open_block(size_t index, const float* values, const float* weights) override {
    settle(values, weights, search_signed(kCodes, values, weights), index, super_);
  }
  float round(size_t i, float value) override {
    const float scale = scale_of(super_, i / kSmall);
    super_.codes[i] = static_cast<uint8_t>(signed_code(kCodes, value, scale));
    return scale * static_cast<float>(super_.codes[i] - kCodes.zero);
  }
  void close(size_t index) override { put_q6(super_, to_ + index * kQ6Bytes); }

 private:
  uint8_t* to_;
  SignedSuper super_;
};

/// Calls pack(256 numbers, their weights, bytes) for each super-block of a row.
template <class Pack>
void for_super_blocks(std::span<const float> values, void* to, size_t bytes, const Pack& pack) {
  CHECK(values.size() % kSuper == 0);
  auto* out = static_cast<uint8_t*>(to);
  for (size_t i = 0; i < values.size(); i += kSuper, out += bytes)
    pack(values.data() + i, error_weights(values.data() + i).data(), out);
}

void pack_affine(const AffineType& type, std::span<const float> values, void* to) {
  for_super_blocks(values, to, type.bytes, [&](const float* x, const float* w, uint8_t* out) {
    AffineSuper super = search_super(x, w, type.levels);
    for (size_t i = 0; i < kSuper; ++i)
      super.codes[i / kAffineBlock][i % kAffineBlock] =
          affine_code(x[i], scale_of(super, i / kAffineBlock), type.levels);
    type.put(super, out);
  });
}

}  // namespace

std::unique_ptr<BlockRounder> make_k_rounder(std::string_view format, void* to) {
  if (format == "q4_k") return std::make_unique<AffineRounder>(kQ4, to);
  if (format == "q5_k") return std::make_unique<AffineRounder>(kQ5, to);
  if (format == "q6_k") return std::make_unique<SignedRounder>(to);
  return nullptr;
}

void pack_q4_k(std::span<const float> values, const RowPieces& to) {
  pack_affine(kQ4, values, to.codes);
}
void pack_q5_k(std::span<const float> values, const RowPieces& to) {
  pack_affine(kQ5, values, to.codes);
}
void pack_q6_k(std::span<const float> values, const RowPieces& to) {
  for_super_blocks(values, to.codes, kQ6Bytes, [](const float* x, const float* w, uint8_t* out) {
    SignedSuper super = search_signed_super(x, w);
    for (size_t i = 0; i < kSuper; ++i)
      super.codes[i] = static_cast<uint8_t>(signed_code(kCodes, x[i], scale_of(super, i / kSmall)));
    put_q6(super, out);
  });
}

}  // namespace mixtral::ops
