// Sampling. Probabilities take one vectorised pass in f64. Tokens are put into order only as far as
// the draw needs: by ranges of logits, and within a range by selection, a few hundred at a time.

#include <algorithm>
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

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(weigh);

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Tokens in order of descending logits (ties to the lower id), found as they are asked for.
class Ranking {
 public:
  /// `room` holds one index a token. Logits are multiples of `unit` apart in what is sorted at
  /// once.
  Ranking(const double* logits, int64_t count, double largest, double unit, int32_t* room)
      : logits_(logits), count_(count), bound_(largest), step_(4 * unit), room_(room) {}

  /// The next token, or −1 after the last.
  int32_t next() {
    while (taken_ == sorted_ && sorted_ == collected_) {
      if (bound_ == kMinusInfinity) return -1;
      collect();
    }
    if (taken_ == sorted_) sort_more();
    return room_[taken_++];
  }

 private:
  /// The tokens of the next range of logits, in no order.
  void collect() {
    const double upper = bound_;
    const bool first = ranges_ == 0;
    const double lower = ++ranges_ < kRanges ? upper - step_ : kMinusInfinity;
    taken_ = sorted_ = collected_ = 0;
    chunk_ = kChunk;
    for (int64_t v = 0; v < count_; ++v) {
      const bool below = first || logits_[v] < upper;
      if (below && logits_[v] >= lower) room_[collected_++] = static_cast<int32_t>(v);
    }
    bound_ = lower;
  }

  void sort_more() {
    const auto before = [this](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    };
    const int64_t end = std::min(collected_, sorted_ + chunk_);
    chunk_ *= 2;
    if (end < collected_)
      std::nth_element(room_ + sorted_, room_ + end, room_ + collected_, before);
    std::sort(room_ + sorted_, room_ + end, before);
    sorted_ = end;
  }

  static constexpr int kRanges = 4;
  static constexpr int64_t kChunk = 256;

  const double* logits_;
  int64_t count_;
  double bound_, step_;
  int32_t* room_;
  int ranges_ = 0;
  int64_t taken_ = 0, sorted_ = 0, collected_ = 0, chunk_ = kChunk;
};

/// A uniform number in [0, 1) of 53 bits.
double uniform(uint64_t seed, int32_t position) {
  const auto words = philox(seed, 0, static_cast<uint64_t>(int64_t{position}));
  return static_cast<double>((uint64_t{words[0]} | uint64_t{words[1]} << 32) >> 11) * 0x1p-53;
}

/// Room for one sequence: V tokens rounded up to a multiple of 8.
struct Room {
  double* logits;
  double* weights;
  int32_t* order;
  int32_t* kept;
};

int64_t padded(int64_t vocabulary) { return (vocabulary + 7) / 8 * 8; }

int32_t draw(const ops::SamplingSettings& settings, int32_t position, int64_t vocabulary,
             const Room& room) {
  const int64_t count = padded(vocabulary);
  const double* z = room.logits;
  const double* first = std::max_element(z, z + vocabulary);
  const double largest = *first;
  if (settings.temperature <= 0 || std::isinf(largest)) return static_cast<int32_t>(first - z);
  const auto temperature = static_cast<double>(settings.temperature);
  const double all = HWY_DYNAMIC_DISPATCH(weigh)(z, count, largest, temperature, room.weights);
  const double* weight = room.weights;
  const double u = uniform(settings.seed, position);
  Ranking ranking(z, vocabulary, largest, temperature, room.order);

  const bool limited = settings.top_k > 0 && settings.top_k < vocabulary;
  if (!limited && settings.top_p >= 1 && settings.min_p <= 0) {
    double sum = 0;
    int32_t last = -1;
    for (int32_t v; (v = ranking.next()) >= 0; last = v) {
      sum += weight[v];
      if (sum > u * all) return v;
    }
    return last;
  }

  // The kept tokens, in order. With top-k, the mass that top-p is a share of is that of the k.
  int32_t* kept = room.kept;
  int64_t size = 0;
  double mass = all;
  if (limited) {
    mass = 0;
    while (size < settings.top_k) {
      const int32_t v = ranking.next();
      kept[size++] = v;
      mass += weight[v];
    }
  }
  const int64_t candidates = limited ? size : vocabulary;
  double before = 0;
  int64_t end = 0;
  for (; end < candidates; ++end) {
    if (!limited) kept[end] = ranking.next();
    const double w = weight[kept[end]];
    if (end > 0 && settings.top_p < 1 && before >= static_cast<double>(settings.top_p) * mass)
      break;
    if (end > 0 && w < static_cast<double>(settings.min_p)) break;
    before += w;
  }
  double sum = 0;
  for (int64_t i = 0; i < end; ++i) {
    sum += weight[kept[i]];
    if (sum > u * before) return kept[i];
  }
  return kept[end - 1];
}

void sample_row(const ops::Sample& op, int64_t s, const Room& room) {
  const int64_t vocabulary = op.logits.dim(1), count = padded(vocabulary);
  const int32_t position = op.positions.as<int32_t>()[s];
  const float* logits = op.logits.as<float>() + s * vocabulary;
  ops::SamplingSettings settings;
  std::memcpy(&settings, op.settings[s].data(), sizeof settings);
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
  const int32_t token = draw(settings, position, vocabulary, room);
  op.tokens.as<int32_t>()[s] = token;
  if (!op.log_probability) return;
  std::copy(logits, logits + vocabulary, z);
  const double largest = *std::max_element(z, z + vocabulary);
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
    auto* order = reinterpret_cast<int32_t*>(memory + 2 * count);
    sample_row(op, s, {memory, memory + count, order, order + count});
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
