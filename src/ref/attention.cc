#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ref/array.h"
#include "ref/backend.h"
#include "ref/kv_view.h"

namespace mixtral::ref {
namespace {

/// Columns of packed queries, keys and values where the parts of query head `i` begin.
struct Columns {
  int64_t query, key, value;
};

Columns columns_of(const ops::Heads& heads, int64_t i) {
  const int64_t kv = i / (heads.query / heads.kv);
  return {i * heads.width, (heads.query + kv) * heads.width,
          (heads.query + heads.kv + kv) * heads.width};
}

/// The first position that the token at position p sees.
int64_t first_seen(int64_t p, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, p - window + 1) : 0;
}

/// out(c) = Σ_t softmax_t(scale · Σ_c query(c) key(t, c)) · value(t, c) over t = first .. last;
/// returns log Σ_t exp(scale · Σ_c query(c) key(t, c)). The arguments after `last` are accessors.
template <class Query, class Key, class Value, class Out>
double attend(int64_t width, double scale, int64_t first, int64_t last, const Query& query,
              const Key& key, const Value& value, const Out& out) {
  std::vector<double> score;
  for (int64_t t = first; t <= last; ++t) {
    double dot = 0;
    for (int64_t c = 0; c < width; ++c) dot += query(c) * key(t, c);
    score.push_back(scale * dot);
  }
  const double largest = *std::max_element(score.begin(), score.end());
  double total = 0;
  for (double s : score) total += std::exp(s - largest);
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int64_t t = first; t <= last; ++t)
      sum += std::exp(score[static_cast<size_t>(t - first)] - largest) / total * value(t, c);
    out(c) = sum;
  }
  return largest + std::log(total);
}

}  // namespace

void RefBackend::run(const ops::Rope& op) {
  const int64_t half = op.heads.width / 2;
  const Floats qkv(op.qkv), table(op.table);
  const Integers positions(op.positions);
  for (int64_t n = 0; n < op.qkv.dim(0); ++n) {
    if (positions[n] == ops::kPadding) continue;
    for (int64_t head = 0; head < op.heads.query + op.heads.kv; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        const double cosine = table(positions[n], 0, i);
        const double sine = table(positions[n], 1, i) * (op.inverse ? -1.0 : 1.0);
        const int64_t column = head * op.heads.width + i;
        const double a = qkv(n, column), b = qkv(n, column + half);
        qkv(n, column) = a * cosine - b * sine;
        qkv(n, column + half) = b * cosine + a * sine;
      }
    }
  }
}

void RefBackend::run(const ops::Attention& op) {
  const int64_t width = op.heads.width;
  const Floats qkv(op.qkv), out(op.out), log_sum(op.log_sum);
  const Integers starts(op.sequence_starts);
  for (int64_t s = 0; s + 1 < op.sequence_starts.dim(0); ++s) {
    const int64_t start = starts[s];
    for (int64_t p = 0; p < starts[s + 1] - start; ++p) {
      for (int64_t i = 0; i < op.heads.query; ++i) {
        const Columns at = columns_of(op.heads, i);
        const double log_total = attend(
            width, op.scale, first_seen(p, op.window), p,
            [&](int64_t c) -> double { return qkv(start + p, at.query + c); },
            [&](int64_t t, int64_t c) -> double { return qkv(start + t, at.key + c); },
            [&](int64_t t, int64_t c) -> double { return qkv(start + t, at.value + c); },
            [&](int64_t c) { return out(start + p, i * width + c); });
        if (op.log_sum) log_sum(start + p, i) = log_total;
      }
    }
  }
}

void RefBackend::run(const ops::AttentionBackward& op) {
  const int64_t width = op.heads.width;
  const Floats qkv(op.qkv), out(op.out), log_sum(op.log_sum), dout(op.dout), delta(op.delta);
  const Integers starts(op.sequence_starts);
  std::vector<double> gradient(static_cast<size_t>(op.dqkv.numel()), 0.0);
  const auto dqkv = [&](int64_t n, int64_t column) -> double& {
    return gradient[static_cast<size_t>(n * op.heads.columns() + column)];
  };
  for (int64_t s = 0; s + 1 < op.sequence_starts.dim(0); ++s) {
    const int64_t start = starts[s];
    for (int64_t n = start; n < starts[s + 1]; ++n) {
      for (int64_t i = 0; i < op.heads.query; ++i) {
        const Columns at = columns_of(op.heads, i);
        double dot = 0;
        for (int64_t c = 0; c < width; ++c) dot += dout(n, i * width + c) * out(n, i * width + c);
        delta(n, i) = dot;
        for (int64_t t = start + first_seen(n - start, op.window); t <= n; ++t) {
          double score = 0, dp = 0;
          for (int64_t c = 0; c < width; ++c) {
            score += qkv(n, at.query + c) * qkv(t, at.key + c);
            dp += dout(n, i * width + c) * qkv(t, at.value + c);
          }
          const double p = std::exp(op.scale * score - log_sum(n, i));
          const double ds = p * (dp - dot);
          for (int64_t c = 0; c < width; ++c) {
            dqkv(n, at.query + c) += op.scale * ds * qkv(t, at.key + c);
            dqkv(t, at.key + c) += op.scale * ds * qkv(n, at.query + c);
            dqkv(t, at.value + c) += p * dout(n, i * width + c);
          }
        }
      }
    }
  }
  const Floats result(op.dqkv);
  for (int64_t i = 0; i < result.size(); ++i) result[i] = gradient[static_cast<size_t>(i)];
}

void RefBackend::run(const ops::CachedAttention& op) {
  const int64_t width = op.heads.width;
  const Floats qkv(op.qkv), out(op.out);
  const Integers positions(op.positions), rows(op.rows);
  for (int64_t n = 0; n < op.qkv.dim(0); ++n) {
    const int64_t p = positions[n];
    if (p == ops::kPadding) {
      for (int64_t c = 0; c < op.out.dim(1); ++c) out(n, c) = 0;
      continue;
    }
    const int64_t first = first_seen(p, op.window);
    const CachedTokens cached(op.cache, rows[n], first, p);
    for (int64_t i = 0; i < op.heads.query; ++i) {
      const int64_t kv = i / (op.heads.query / op.heads.kv);
      attend(
          width, op.scale, first, p, [&](int64_t c) -> double { return qkv(n, i * width + c); },
          [&](int64_t t, int64_t c) -> double { return cached.key(t, kv, c); },
          [&](int64_t t, int64_t c) -> double { return cached.value(t, kv, c); },
          [&](int64_t c) { return out(n, i * width + c); });
    }
  }
}

}  // namespace mixtral::ref
