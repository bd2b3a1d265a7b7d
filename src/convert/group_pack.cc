// Rounds to MLX's groups. Each group tries several ranges around its own; of each, the codes give
// the best scale and bias by weighted least squares, and the codes are rounded again under these as
// they will be stored. Without importance, the plain range is tried too, so that the result is
// never worse than rounding to nearest.
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

/// The nearest codes under `as`, and their weighted squared error. Codes are kept as floats while
/// they are looked for. `weights` has one for each number.
float round_to(std::span<const float> x, std::span<const float> weights, Affine as, int levels,
               std::vector<float>& codes) {
  const float inverse = as.scale != 0 ? 1 / as.scale : 0, most = static_cast<float>(levels);
  float error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float at = std::min(std::max((x[i] - as.bias) * inverse, 0.f), most);
    codes[i] = static_cast<float>(static_cast<int>(at + 0.5f));
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

}  // namespace

void pack_group_row(std::span<const float> values, std::span<const float> importance,
                    const GroupRow& to, std::span<float> packed) {
  const auto width = static_cast<size_t>(to.group);
  const int levels = (1 << to.bits) - 1, in_word = 32 / to.bits;
  std::vector<float> codes(width);
  const std::vector<float> alike(width, 1.f);
  std::fill_n(to.codes, values.size() * static_cast<size_t>(to.bits) / 32, 0);
  for (size_t begin = 0, group = 0; begin < values.size(); begin += width, ++group) {
    const auto x = values.subspan(begin, width);
    const auto weights = importance.empty() ? std::span(alike) : importance.subspan(begin, width);
    const Affine as = search(x, weights, levels, to.dtype, codes);
    if (!std::isfinite(as.scale) || !std::isfinite(as.bias))
      throw Error("a number is too large for scales in f16; convert the model to bf16 first");
    for (size_t i = 0; i < width; ++i) {
      const size_t at = begin + i;
      const auto bits = static_cast<uint32_t>(codes[i])
                        << to.bits * static_cast<int>(at % static_cast<size_t>(in_word));
      to.codes[at / static_cast<size_t>(in_word)] |= static_cast<int32_t>(bits);
      packed[at] = as.scale * codes[i] + as.bias;
    }
    const auto size = static_cast<size_t>(size_of(to.dtype));
    for (const auto& [value, out] : {std::pair(as.scale, to.scales), std::pair(as.bias, to.biases)})
      convert_elements(reinterpret_cast<const std::byte*>(&value), Dtype::f32, out + group * size,
                       to.dtype, 1);
  }
}

}  // namespace mixtral
