// The searches for scales: what they write can be read, and costs less than rounding to the
// nearest.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "convert/group_pack.h"
#include "ops/block_rounder.h"
#include "ops/weight_format.h"

namespace mixtral {
namespace {

struct KType {
  const char* name;
  void (*pack)(std::span<const float>, const ops::RowPieces&);
  double most_error;  // root mean square, as a share of the numbers' deviation

  ops::WeightFormat format() const { return *ops::find_weight_format(name); }
};
constexpr KType kTypes[] = {{"q4_k", ops::pack_q4_k, 0.085},
                            {"q5_k", ops::pack_q5_k, 0.042},
                            {"q6_k", ops::pack_q6_k, 0.02}};

std::vector<float> normal_numbers(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

/// The numbers that are read of bytes that `pack` has written.
template <class Pack>
std::vector<float> read_back(const KType& type, size_t count, const Pack& pack) {
  const ops::WeightFormat format = type.format();
  std::vector<uint8_t> bytes(static_cast<size_t>(format.row_bytes(static_cast<int64_t>(count))));
  pack(bytes.data());
  std::vector<float> again(count);
  format.row().unpack({.codes = bytes.data()}, again);
  return again;
}

std::vector<float> through(const KType& type, std::span<const float> values) {
  return read_back(type, values.size(), [&](uint8_t* to) { type.pack(values, {.codes = to}); });
}

/// Rounds number by number, the last block first. `kept` gets what the rounder says it keeps.
void round_all(ops::BlockRounder& rounder, std::span<const float> values,
               std::span<const float> weights, std::vector<float>& kept) {
  kept.resize(values.size());
  const size_t unit = rounder.unit(), block = rounder.block();
  for (size_t first = 0; first < values.size(); first += unit) {
    rounder.open(&values[first], &weights[first]);
    for (size_t b = unit / block; b-- > 0;) {
      const size_t at = first + b * block;
      rounder.open_block(b, &values[at], &weights[at]);
      for (size_t i = at; i < at + block; ++i) kept[i] = rounder.round(i - first, values[i]);
    }
    rounder.close(first / unit);
  }
}

double error(std::span<const float> a, std::span<const float> b, std::span<const float> weights) {
  double sum = 0, all = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double w = weights.empty() ? 1 : static_cast<double>(weights[i]);
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += w * d * d;
    all += w;
  }
  return std::sqrt(sum / all);
}

TEST(KTypes, KeepNormalNumbersToAFewPercentOfTheirDeviation) {
  const std::vector<float> values = normal_numbers(4096, 3);
  for (const KType& type : kTypes)
    EXPECT_LT(error(values, through(type, values), {}), 0.05 * type.most_error) << type.name;
}

// How ggml searches for scales, in scalar code (quantize_row_q4_K_ref, quantize_row_q6_K_ref).
// Each block tries steps of its scale, with weights that ggml defines. Scales and minima get the
// nearest codes. Numbers are then rounded again under these.
struct AffineGuess {
  double scale = 0, minimum = 0;
};

AffineGuess reference_affine(std::span<const float> x, int levels, double first, int steps) {
  double squares = 0, low = 0, high = x[0];
  for (const float value : x) {
    squares += static_cast<double>(value) * static_cast<double>(value);
    low = std::min(low, static_cast<double>(value));
    high = std::max(high, static_cast<double>(value));
  }
  if (high == low) return {0, -low};
  const double mean = std::sqrt(squares / static_cast<double>(x.size()));
  AffineGuess best;
  double least = std::numeric_limits<double>::infinity();
  for (int step = -1; step <= steps; ++step) {
    const double inverse = (levels + (step < 0 ? 0 : first + 0.1 * step)) / (high - low);
    const auto code = [&](float value) {
      return std::clamp(std::nearbyint((static_cast<double>(value) - low) * inverse), 0.,
                        static_cast<double>(levels));
    };
    double w = 0, wx = 0, wq = 0, wqq = 0, wxq = 0;
    for (const float value : x) {
      const double v = static_cast<double>(value), weight = mean + std::abs(v), q = code(value);
      w += weight, wx += weight * v, wq += weight * q, wqq += weight * q * q;
      wxq += weight * v * q;
    }
    AffineGuess guess{1 / inverse, -low};
    const double determinant = w * wqq - wq * wq;
    if (step >= 0) {
      if (!(determinant > 0)) continue;
      guess = {(w * wxq - wx * wq) / determinant, (wq * wxq - wqq * wx) / determinant};
      if (guess.minimum < 0) guess = {wxq / wqq, 0};
    }
    double error = 0;
    for (const float value : x) {
      const double v = static_cast<double>(value);
      const double off = guess.scale * code(value) - guess.minimum - v;
      error += (mean + std::abs(v)) * off * off;
    }
    if (error < least) {
      least = error;
      best = guess;
    }
  }
  return best;
}

double half(double value) {
  return static_cast<double>(static_cast<float>(f16(static_cast<float>(value))));
}

void reference_affine_super(std::span<const float> x, int levels, double first, int steps,
                            std::span<float> to) {
  std::array<AffineGuess, 8> blocks;
  double most_scale = 0, most_minimum = 0;
  for (size_t b = 0; b < 8; ++b) {
    blocks[b] = reference_affine(x.subspan(32 * b, 32), levels, first, steps);
    most_scale = std::max(most_scale, blocks[b].scale);
    most_minimum = std::max(most_minimum, blocks[b].minimum);
  }
  const auto kept = [](double value, double most) {
    return most > 0 ? half(most / 63) * std::min(63., std::nearbyint(63 / most * value)) : 0;
  };
  for (size_t i = 0; i < x.size(); ++i) {
    const double scale = kept(blocks[i / 32].scale, most_scale);
    const double minimum = kept(blocks[i / 32].minimum, most_minimum);
    const double code =
        scale > 0 ? std::clamp(std::nearbyint((static_cast<double>(x[i]) + minimum) / scale), 0.,
                               static_cast<double>(levels))
                  : 0;
    to[i] = static_cast<float>(scale * code - minimum);
  }
}

double reference_signed(std::span<const float> x) {
  double most = 0, best = 0, scale = 0;
  for (const float value : x)
    if (std::abs(static_cast<double>(value)) > std::abs(most)) most = static_cast<double>(value);
  if (most == 0) return 0;
  for (int step = -9; step <= 9; ++step) {
    const double inverse = -(32 + 0.1 * step) / most;
    double wqq = 0, wxq = 0;
    for (const float value : x) {
      const double v = static_cast<double>(value);
      const double q = std::clamp(std::nearbyint(v * inverse), -32., 31.);
      wqq += v * v * q * q;
      wxq += v * v * v * q;
    }
    if (wqq > 0 && wxq * wxq > best * wqq) {
      scale = wxq / wqq;
      best = scale * wxq;
    }
  }
  return scale;
}

void reference_signed_super(std::span<const float> x, std::span<float> to) {
  std::array<double, 16> scales;
  double most = 0;
  for (size_t b = 0; b < 16; ++b) {
    scales[b] = reference_signed(x.subspan(16 * b, 16));
    if (std::abs(scales[b]) > std::abs(most)) most = scales[b];
  }
  const double unit = half(most / -128);
  for (size_t i = 0; i < x.size(); ++i) {
    const double scale =
        unit * std::min(127., std::nearbyint(most != 0 ? scales[i / 16] * -128 / most : 0));
    const double code =
        scale != 0 ? std::clamp(std::nearbyint(static_cast<double>(x[i]) / scale), -32., 31.) : 0;
    to[i] = static_cast<float>(scale * code);
  }
}

/// Normal numbers; a few far from the others; two sizes; all of one sign.
std::vector<std::pair<const char*, std::vector<float>>> many_kinds_of_numbers() {
  constexpr size_t kCount = 16384;
  std::vector<float> normal = normal_numbers(kCount, 7), far = normal, sizes = normal;
  std::vector<float> positive = normal;
  for (size_t i = 0; i < kCount; ++i) {
    if (i % 97 == 5) far[i] *= 6;
    if (i / 64 % 2 == 1) sizes[i] *= 0.1f;
    positive[i] = std::abs(positive[i]);
  }
  return {{"normal", normal}, {"far", far}, {"two sizes", sizes}, {"positive", positive}};
}

TEST(KTypes, LoseNoMoreThanGgmlsSearch) {
  for (const auto& [kind, values] : many_kinds_of_numbers()) {
    std::vector<float> large(values.size()), squares(values.size());
    double sum = 0;
    for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
    const auto deviation = static_cast<float>(std::sqrt(sum / static_cast<double>(values.size())));
    for (size_t i = 0; i < values.size(); ++i) {
      large[i] = deviation + std::abs(values[i]);
      squares[i] = values[i] * values[i];
    }
    for (const KType& type : kTypes) {
      std::vector<float> reference(values.size());
      const std::string_view name = type.name;
      for (size_t i = 0; i < values.size(); i += 256) {
        const auto from = std::span(values).subspan(i, 256);
        const auto to = std::span(reference).subspan(i, 256);
        if (name == "q4_k") reference_affine_super(from, 15, -1, 20, to);
        if (name == "q5_k") reference_affine_super(from, 31, -0.5, 15, to);
        if (name == "q6_k") reference_signed_super(from, to);
      }
      const std::vector<float> ours = through(type, values);
      for (const std::vector<float>& weights : {std::vector<float>(), large, squares})
        EXPECT_LE(error(values, ours, weights), error(values, reference, weights))
            << type.name << ", " << kind << (weights.empty() ? "" : ", weighted");
    }
  }
}

TEST(Rounders, MoveTheErrorToColumnsThatMatterLess) {
  const std::vector<float> values = normal_numbers(4096, 4);
  std::vector<float> weights(values.size()), kept;
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = i % 3 == 0 ? 100.f : 1.f;
  std::vector<KType> types(std::begin(kTypes), std::end(kTypes));
  types.push_back({"q4_0", ops::pack_q4_0, {}});
  types.push_back({"q5_0", ops::pack_q5_0, {}});
  types.push_back({"q8_0", ops::pack_q8_0, {}});
  for (const KType& type : types) {
    const std::vector<float> weighted = read_back(type, values.size(), [&](uint8_t* to) {
      round_all(*ops::make_rounder(type.name, to), values, weights, kept);
    });
    EXPECT_EQ(weighted, kept) << type.name;
    EXPECT_LT(error(values, weighted, weights), error(values, through(type, values), weights))
        << type.name;
  }
}

// Scales are f16, so that the smallest numbers become 0.
TEST(KTypes, SurviveNumbersOfEverySize) {
  for (const float size : {0.f, 1e-30f, 1e-6f, 1e4f}) {
    std::vector<float> values = normal_numbers(512, 5);
    for (float& value : values) value *= size;
    values[17] = size;  // and a block of one sign beside zeros
    std::fill(values.begin() + 256, values.begin() + 288, size);
    for (const KType& type : kTypes) {
      const std::vector<float> again = through(type, values);
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_TRUE(std::isfinite(again[i])) << type.name << " " << size;
        ASSERT_NEAR(again[i], values[i], (size < 1e-3f ? 1.01f : 0.2f) * size)
            << type.name << " " << i;
      }
    }
  }
}

TEST(Groups, AreReadAsTheyWerePackedAndNoWorseThanTheNearest) {
  const std::vector<float> values = normal_numbers(1024, 6);
  for (const int bits : {4, 8}) {
    std::vector<int32_t> codes(1024 * static_cast<size_t>(bits) / 32);
    std::vector<float> scales(16), biases(16), packed(1024);
    pack_group_row(values,
                   {.bits = bits,
                    .group = 64,
                    .dtype = Dtype::f32,
                    .codes = codes.data(),
                    .scales = reinterpret_cast<std::byte*>(scales.data()),
                    .biases = reinterpret_cast<std::byte*>(biases.data())},
                   packed);
    double nearest = 0;
    for (size_t g = 0; g < 16; ++g) {
      const auto group = std::span(values).subspan(g * 64, 64);
      const auto [low, high] = std::ranges::minmax(group);
      const float step = (high - low) / static_cast<float>((1 << bits) - 1);
      for (const float value : group) {
        const double off =
            static_cast<double>(low + step * std::round((value - low) / step) - value);
        nearest += off * off;
      }
    }
    EXPECT_LE(error(values, packed, {}), std::sqrt(nearest / 1024) * (1 + 1e-6)) << bits;
    for (size_t i = 0; i < values.size(); ++i) {
      const auto in_word = 32 / static_cast<size_t>(bits);
      const uint32_t word = static_cast<uint32_t>(codes[i / in_word]);
      const uint32_t code = word >> static_cast<size_t>(bits) * (i % in_word) & ((1u << bits) - 1);
      ASSERT_FLOAT_EQ(scales[i / 64] * static_cast<float>(code) + biases[i / 64], packed[i]);
    }
  }
}

}  // namespace
}  // namespace mixtral
