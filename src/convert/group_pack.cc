// Rounds to MLX's groups. Each group tries several ranges around its own; of each, the codes give
// the best scale and bias by weighted least squares, and the codes are rounded again under these as
// they will be stored. The plain range is tried too, so that the result is never worse than
// rounding to nearest.
#include "convert/group_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "io/convert.h"

namespace mixtral {
namespace {

float stored_as(float value, Dtype dtype) {
  if (dtype == Dtype::bf16) return static_cast<float>(bf16(value));
  if (dtype == Dtype::f16) return static_cast<float>(f16(value));
  return value;
}

struct Affine {
  float scale = 0, bias = 0;
};

/// Kept as a float while codes are looked for.
float nearest_code(float x, Affine as, int levels) {
  const float inverse = as.scale != 0 ? 1 / as.scale : 0;
  const float at =
      std::min(std::max((x - as.bias) * inverse, 0.f), static_cast<float>(levels)) + 0.5f;
  return static_cast<float>(static_cast<int>(at));
}

/// The nearest codes under `as`, and their weighted squared error. `weights` has one for each
/// number.
float round_to(std::span<const float> x, std::span<const float> weights, Affine as, int levels,
               std::vector<float>& codes) {
  float error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    codes[i] = nearest_code(x[i], as, levels);
    const float off = as.scale * codes[i] + as.bias - x[i];
    error += weights[i] * off * off;
  }
  return error;
}

Affine fit(std::span<const float> x, std::span<const float> weights,
           const std::vector<float>& codes) {
  double sw = 0, sx = 0, sq = 0, sqq = 0, sxq = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const auto w = static_cast<double>(weights[i]), v = static_cast<double>(x[i]);
    const auto q = static_cast<double>(codes[i]);
    sw += w;
    sx += w * v;
    sq += w * q;
    sqq += w * q * q;
    sxq += w * v * q;
  }
  const double determinant = sw * sqq - sq * sq;
  if (!(determinant > 1e-12 * sw * sqq)) return {};
  return {static_cast<float>((sw * sxq - sx * sq) / determinant),
          static_cast<float>((sqq * sx - sq * sxq) / determinant)};
}

Affine search(std::span<const float> x, std::span<const float> weights, int levels, Dtype dtype,
              std::vector<float>& codes) {
  const auto [low, high] = std::ranges::minmax_element(x);
  const auto stored = [&](Affine as) {
    return Affine{stored_as(as.scale, dtype), stored_as(as.bias, dtype)};
  };
  const float range = *high - *low;
  Affine best = stored({range / static_cast<float>(levels), *low});
  float least = round_to(x, weights, best, levels, codes);
  std::vector<float> trial(x.size());
  for (int step = -2; step <= 8 && range > 0; step += 2) {
    // Narrower ranges clip the ends for a finer step between them.
    const float cut = 0.5f * 0.03f * static_cast<float>(step) * range;
    const Affine narrowed{(range - 2 * cut) / static_cast<float>(levels), *low + cut};
    round_to(x, weights, narrowed, levels, trial);
    const Affine fitted = stored(fit(x, weights, trial));
    if (!(fitted.scale > 0)) continue;
    const float error = round_to(x, weights, fitted, levels, trial);
    if (!(error < least)) continue;
    least = error;
    best = fitted;
    codes = trial;
  }
  return best;
}

class GroupRounder : public ops::BlockRounder {
 public:
  explicit GroupRounder(const GroupRow& to)
      : to_(to), levels_((1 << to.bits) - 1), codes_(static_cast<size_t>(to.group)) {}

  size_t unit() const override { return codes_.size(); }
  size_t block() const override { return codes_.size(); }
  void open(const float* values, const float* weights) override {
    as_ = search({values, unit()}, {weights, unit()}, levels_, to_.dtype, codes_);
    if (!std::isfinite(as_.scale) || !std::isfinite(as_.bias))
      throw Error("a number is too large for scales in f16; convert the model to bf16 first");
  }
  void open_block(size_t, const float*, const float*) override {}
  float round(size_t i, float value) override {
    codes_[i] = nearest_code(value, as_, levels_);
    return as_.scale * codes_[i] + as_.bias;
  }
  void close(size_t index) override {
    const auto in_word = static_cast<size_t>(32 / to_.bits);
    int32_t* words = to_.codes + index * unit() / in_word;
    std::fill_n(words, unit() / in_word, 0);
    for (size_t i = 0; i < unit(); ++i) {
      const uint32_t bits = static_cast<uint32_t>(codes_[i])
                            << static_cast<size_t>(to_.bits) * (i % in_word);
      words[i / in_word] |= static_cast<int32_t>(bits);
    }
    const auto size = static_cast<size_t>(size_of(to_.dtype));
    for (const auto& [value, out] :
         {std::pair(as_.scale, to_.scales), std::pair(as_.bias, to_.biases)})
      convert_elements(reinterpret_cast<const std::byte*>(&value), Dtype::f32, out + index * size,
                       to_.dtype, 1);
  }

 private:
  GroupRow to_;
  int levels_;
  Affine as_;
  std::vector<float> codes_;
};

}  // namespace

std::unique_ptr<ops::BlockRounder> make_group_rounder(const GroupRow& to) {
  return std::make_unique<GroupRounder>(to);
}

void pack_group_row(std::span<const float> values, const GroupRow& to, std::span<float> packed) {
  GroupRounder rounder(to);
  const size_t width = rounder.unit();
  const std::vector<float> alike(width, 1.f);
  for (size_t begin = 0; begin < values.size(); begin += width) {
    rounder.open(values.data() + begin, alike.data());
    for (size_t i = 0; i < width; ++i) packed[begin + i] = rounder.round(i, values[begin + i]);
    rounder.close(begin / width);
  }
}

}  // namespace mixtral
