// Sampling. Probabilities take one vectorised pass in f64. Tokens are sorted into buckets of
// similar logits, and put into order only within the bucket that a limit or the draw falls into.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/random.h"
#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"
#include "ops/vocab.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/sample.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Doubles = hn::CappedTag<double, 8>;
using Bits = hn::RebindToUnsigned<Doubles>;
using Vector = hn::Vec<Doubles>;

/// eˣ for x <= 0, within 2 ulp; 0 below −708.
HWY_INLINE Vector exponential_nonpositive(Vector x) {
  const Doubles tag;
  const auto tiny = hn::Lt(x, hn::Set(tag, -708.0));
  x = hn::IfThenElse(tiny, hn::Set(tag, -708.0), x);
  const auto rounder = hn::Set(tag, 0x1.8p52);
  const auto shifted = hn::MulAdd(x, hn::Set(tag, 0x1.71547652b82fep0), rounder);
  const auto n = hn::Sub(shifted, rounder);
  auto r = hn::NegMulAdd(n, hn::Set(tag, 0x1.62e42fefa39efp-1), x);
  r = hn::NegMulAdd(n, hn::Set(tag, 0x1.abc9e3b39803fp-56), r);
  // Taylor's series to r¹³ on |r| <= ln(2) / 2.
  constexpr double kFactors[] = {1.0 / 479001600,
                                 1.0 / 39916800,
                                 1.0 / 3628800,
                                 1.0 / 362880,
                                 1.0 / 40320,
                                 1.0 / 5040,
                                 1.0 / 720,
                                 1.0 / 120,
                                 1.0 / 24,
                                 1.0 / 6,
                                 1.0 / 2,
                                 1.0,
                                 1.0};
  auto e = hn::Set(tag, 1.0 / 6227020800);
  for (double factor : kFactors) e = hn::MulAdd(e, r, hn::Set(tag, factor));
  const auto exponent = hn::ShiftLeft<52>(hn::BitCast(Bits(), shifted));
  const auto scaled = hn::BitCast(tag, hn::Add(hn::BitCast(Bits(), e), exponent));
  return hn::IfThenElse(tiny, hn::Zero(tag), scaled);
}

/// weights[i] = exp((logits[i] − largest) / temperature); returns their sum. `n` is a multiple
/// of 8.
double weigh(const double* logits, int64_t n, double largest, double temperature, double* weights) {
  const Doubles tag;
  constexpr int kWidth = static_cast<int>(hn::MaxLanes(Doubles()));
  const auto top = hn::Set(tag, largest), divisor = hn::Set(tag, temperature);
  double sums[8] = {};
  Vector sum[8 / kWidth];
  for (auto& s : sum) s = hn::Zero(tag);
  for (int64_t i = 0; i < n; i += 8) {
    for (int j = 0; j < 8 / kWidth; ++j) {
      const int64_t at = i + j * kWidth;
      const auto x = hn::Div(hn::Sub(hn::LoadU(tag, logits + at), top), divisor);
      const auto e = exponential_nonpositive(x);
      hn::StoreU(e, tag, weights + at);
      sum[j] = hn::Add(sum[j], e);
    }
  }
  for (int j = 0; j < 8 / kWidth; ++j) hn::StoreU(sum[j], tag, sums + j * kWidth);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/// The first of the largest logits; a NaN counts as −∞. `n` is at least 1.
int64_t find_largest(const float* logits, int64_t n) {
  const hn::CappedTag<float, 16> tag;
  constexpr int64_t kWidth = static_cast<int64_t>(hn::MaxLanes(decltype(tag)()));
  constexpr int kChains = 4;
  const auto none = hn::Set(tag, -std::numeric_limits<float>::infinity());
  const auto number = [&](const float* from) HWY_ATTR {
    const auto x = hn::LoadU(tag, from);
    return hn::IfThenElse(hn::Eq(x, x), x, none);
  };
  hn::Vec<decltype(tag)> most[kChains] = {none, none, none, none};
  int64_t i = 0;
  for (; i + kChains * kWidth <= n; i += kChains * kWidth)
    for (int c = 0; c < kChains; ++c) most[c] = hn::Max(most[c], number(logits + i + c * kWidth));
  float lanes[kChains * kWidth];
  for (int c = 0; c < kChains; ++c) hn::StoreU(most[c], tag, lanes + c * kWidth);
  float largest = *std::max_element(lanes, lanes + kChains * kWidth);
  for (; i < n; ++i)
    if (logits[i] > largest) largest = logits[i];
  if (largest == -std::numeric_limits<float>::infinity()) return 0;
  const auto top = hn::Set(tag, largest);
  for (i = 0; i + kWidth <= n; i += kWidth) {
    const auto found = hn::Eq(hn::LoadU(tag, logits + i), top);
    if (!hn::AllFalse(tag, found)) return i + static_cast<int64_t>(hn::FindFirstTrue(tag, found));
  }
  while (logits[i] != largest) ++i;
  return i;
}

/// buckets[i] = ⌊(largest − logits[i]) · scale⌋, at most `last`. `n` is a multiple of 8.
void choose_buckets(const double* logits, int64_t n, double largest, double scale, int32_t last,
                    int32_t* buckets) {
  const Doubles tag;
  const hn::Rebind<int32_t, Doubles> integers;
  const auto top = hn::Set(tag, largest), factor = hn::Set(tag, scale);
  const auto most = hn::Set(tag, static_cast<double>(last));
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(tag))) {
    const auto place = hn::Mul(hn::Sub(top, hn::LoadU(tag, logits + i)), factor);
    hn::StoreU(hn::DemoteTo(integers, hn::Min(place, most)), integers, buckets + i);
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(weigh);
HWY_EXPORT(choose_buckets);
HWY_EXPORT(find_largest);

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// A uniform number in [0, 1) of 53 bits.
double uniform(uint64_t seed, int32_t position) {
  const auto words = philox(seed, 0, static_cast<uint64_t>(int64_t{position}));
  return static_cast<double>((uint64_t{words[0]} | uint64_t{words[1]} << 32) >> 11) * 0x1p-53;
}

/// Room for one sequence: V tokens rounded up to a multiple of 8.
struct Room {
  double* logits;
  double* weights;
  int32_t* buckets;
  int32_t* members;
};

int64_t padded(int64_t vocabulary) { return (vocabulary + 7) / 8 * 8; }

/// The first tokens in order of descending logits.
struct Prefix {
  int64_t tokens = 0;
  double mass = 0;    // the sum of their weights
  int32_t last = -1;  // the last of them
};

/// Tokens in order of descending logits (ties to the lower id), in buckets of similar logits.
class Ranking {
 public:
  Ranking(const Room& room, int64_t vocabulary, double largest, double temperature)
      : room_(room), vocabulary_(vocabulary) {
    HWY_DYNAMIC_DISPATCH(choose_buckets)
    (room.logits, padded(vocabulary), largest, kBucketsInOne / temperature, kBuckets - 1,
     room.buckets);
    for (int64_t v = 0; v < vocabulary; ++v) {
      const auto bucket = static_cast<size_t>(room.buckets[v]);
      masses_[bucket] += room.weights[v];
      ++counts_[bucket];
    }
    while (final_ > 0 && masses_[static_cast<size_t>(final_)] == 0) --final_;
  }

  /// The shortest prefix, of one token or more, that has `most` tokens or a mass of `target`; else
  /// all tokens whose weight is not 0.
  Prefix shortest(int64_t most, double target) {
    Prefix prefix;
    for (int bucket = 0; bucket <= final_; ++bucket) {
      const auto at = static_cast<size_t>(bucket);
      if (bucket < final_ && prefix.tokens + counts_[at] < most &&
          prefix.mass + masses_[at] < target) {
        prefix.tokens += counts_[at];
        prefix.mass += masses_[at];
        continue;
      }
      sort_bucket(bucket);
      for (int64_t i = 0; i < counts_[at]; ++i) {
        const int32_t v = room_.members[i];
        if (room_.weights[v] == 0) break;
        ++prefix.tokens;
        prefix.mass += room_.weights[v];
        prefix.last = v;
        if (prefix.tokens >= most || prefix.mass >= target) return prefix;
      }
    }
    return prefix;
  }

 private:
  /// Puts a bucket's tokens into `members`, in order.
  void sort_bucket(int bucket) {
    if (sorted_ == bucket) return;
    sorted_ = bucket;
    int32_t* end = room_.members;
    for (int64_t v = 0; v < vocabulary_; ++v)
      if (room_.buckets[v] == bucket) *end++ = static_cast<int32_t>(v);
    std::sort(room_.members, end, [z = room_.logits](int32_t a, int32_t b) {
      return z[a] != z[b] ? z[a] > z[b] : a < b;
    });
  }

  // The last bucket holds what is less than e⁻³² times as probable as the most probable token.
  static constexpr int kBuckets = 1024;
  static constexpr double kBucketsInOne = 32;  // in a difference of one temperature

  Room room_;
  int64_t vocabulary_;
  std::array<double, kBuckets> masses_{};
  std::array<int32_t, kBuckets> counts_{};
  int final_ = kBuckets - 1;  // the last bucket with a token whose weight is not 0
  int sorted_ = -1;           // the bucket in `members`
};

int32_t draw(const ops::SamplingSettings& settings, int32_t position, int64_t vocabulary,
             const Room& room) {
  const int64_t count = padded(vocabulary);
  const double* z = room.logits;
  const double* first = std::max_element(z, z + vocabulary);
  const double largest = *first;
  if (settings.temperature <= 0 || std::isinf(largest)) return static_cast<int32_t>(first - z);
  const auto temperature = static_cast<double>(settings.temperature);
  const double all = HWY_DYNAMIC_DISPATCH(weigh)(z, count, largest, temperature, room.weights);
  constexpr double kAll = std::numeric_limits<double>::infinity();
  Ranking ranking(room, vocabulary, largest, temperature);
  Prefix kept{vocabulary, all};
  if (settings.top_k > 0 && settings.top_k < vocabulary)
    kept = ranking.shortest(settings.top_k, kAll);
  // With top-k, the mass that top-p is a share of is that of the k.
  if (settings.top_p < 1)
    kept = ranking.shortest(kept.tokens, static_cast<double>(settings.top_p) * kept.mass);
  if (settings.min_p > 0) {
    const auto probable = std::count_if(room.weights, room.weights + vocabulary, [&](double w) {
      return w >= static_cast<double>(settings.min_p);
    });
    if (probable < kept.tokens) kept = ranking.shortest(probable, kAll);
  }
  // The token at which the sum exceeds u times the whole.
  const double target = std::nextafter(uniform(settings.seed, position) * kept.mass, kAll);
  return ranking.shortest(kept.tokens, target).last;
}

/// The logits that tokens are drawn by: with bias and penalty, −∞ where a token is not allowed.
void adjust_logits(const ops::Sample& op, int64_t s, const ops::SamplingSettings& settings,
                   const Room& room) {
  const int64_t vocabulary = op.logits.dim(1), count = padded(vocabulary);
  const int32_t position = op.positions.as<int32_t>()[s];
  const float* logits = op.logits.as<float>() + s * vocabulary;
  double* z = room.logits;
  const float* bias = op.bias ? op.bias.as<float>() + s * vocabulary : nullptr;
  const auto biased = [&](int64_t v) {
    const auto logit = static_cast<double>(logits[v]);
    return bias != nullptr ? logit + static_cast<double>(bias[v]) : logit;
  };
  for (int64_t v = 0; v < vocabulary; ++v) {
    z[v] = biased(v);
    if (std::isnan(z[v])) z[v] = kMinusInfinity;
  }
  std::fill(z + vocabulary, z + count, kMinusInfinity);
  const auto penalty = static_cast<double>(settings.repeat_penalty);
  if (op.history && settings.repeat_penalty != 1) {
    const int64_t width = op.history.dim(1);
    const int32_t* row = op.history.as<int32_t>() + s * width;
    for (int64_t i = 0; i < width; ++i) {
      const int32_t token = row[i];
      // A token is penalised once: where it occurs again, its logit is computed again.
      if (token < 0 || token >= vocabulary) continue;
      if (!ops::in_history(i, width, position, settings.repeat_last_n)) continue;
      const double plain = biased(token);
      if (!std::isnan(plain)) z[token] = plain > 0 ? plain / penalty : plain * penalty;
    }
  }
  if (op.allowed) {
    const auto* words = reinterpret_cast<const uint32_t*>(op.allowed[s].as<int32_t>());
    for (int64_t v = 0; v < vocabulary; ++v)
      if ((words[v / 32] >> (v % 32) & 1) == 0) z[v] = kMinusInfinity;
  }
  // An infinite logit times a penalty of 0 is NaN, too.
  for (int64_t v = 0; penalty == 0 && v < vocabulary; ++v)
    if (std::isnan(z[v])) z[v] = kMinusInfinity;
}

void sample_row(const ops::Sample& op, int64_t s, const Room& room) {
  const int64_t vocabulary = op.logits.dim(1), count = padded(vocabulary);
  const int32_t position = op.positions.as<int32_t>()[s];
  const float* logits = op.logits.as<float>() + s * vocabulary;
  ops::SamplingSettings settings;
  std::memcpy(&settings, op.settings[s].data(), sizeof settings);
  double* z = room.logits;
  const bool penalised = op.history && settings.repeat_penalty != 1;
  int32_t token = 0;
  if (settings.temperature <= 0 && !op.bias && !penalised && !op.allowed) {
    token = static_cast<int32_t>(HWY_DYNAMIC_DISPATCH(find_largest)(logits, vocabulary));
  } else {
    adjust_logits(op, s, settings, room);
    token = draw(settings, position, vocabulary, room);
  }
  op.tokens.as<int32_t>()[s] = token;
  if (!op.log_probability) return;
  const auto largest =
      static_cast<double>(logits[HWY_DYNAMIC_DISPATCH(find_largest)(logits, vocabulary)]);
  std::copy(logits, logits + vocabulary, z);
  std::fill(z + vocabulary, z + count, kMinusInfinity);
  const double sum = HWY_DYNAMIC_DISPATCH(weigh)(z, count, largest, 1, room.weights);
  op.log_probability.as<float>()[s] = static_cast<float>(z[token] - (largest + std::log(sum)));
}

}  // namespace

void CpuBackend::run(const ops::Sample& op) {
  expect_f32(op.kName, {op.logits, op.log_probability});
  const int64_t count = padded(op.logits.dim(1));
  pool_.for_each(op.logits.dim(0), [&](int64_t s, int thread) {
    if (op.positions.as<int32_t>()[s] == ops::kPadding) return;
    auto* memory = static_cast<double*>(
        scratch_.get(thread, count * (2 * int64_t{sizeof(double)} + 2 * int64_t{sizeof(int32_t)})));
    auto* buckets = reinterpret_cast<int32_t*>(memory + 2 * count);
    sample_row(op, s, {memory, memory + count, buckets, buckets + count});
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
