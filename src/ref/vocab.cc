#include "ops/vocab.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "base/random.h"
#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

/// log Σ_v exp(logits[n, v])
double log_sum_exp(const Floats& logits, int64_t n, int64_t vocabulary) {
  double largest = logits(n, 0);
  for (int64_t v = 1; v < vocabulary; ++v) largest = std::max<double>(largest, logits(n, v));
  double total = 0;
  for (int64_t v = 0; v < vocabulary; ++v) total += std::exp(logits(n, v) - largest);
  return largest + std::log(total);
}

/// A uniform number in [0, 1) of 53 bits.
double uniform(uint64_t seed, int64_t position) {
  const auto words = philox(seed, 0, static_cast<uint64_t>(position));
  return static_cast<double>((uint64_t{words[0]} | uint64_t{words[1]} << 32) >> 11) * 0x1p-53;
}

/// Draws from logits z, which are already penalised.
int32_t draw(std::vector<double> z, const ops::SamplingSettings& settings, int64_t position) {
  for (double& logit : z)
    if (std::isnan(logit)) logit = -std::numeric_limits<double>::infinity();
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int32_t v) { return z[static_cast<size_t>(v)]; };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  });
  const double largest = logit(order[0]);
  if (settings.temperature <= 0 || std::isinf(largest)) return order[0];

  if (settings.top_k > 0 && static_cast<size_t>(settings.top_k) < order.size())
    order.resize(static_cast<size_t>(settings.top_k));

  // Not normalised: 1 for the most probable token.
  const auto temperature = static_cast<double>(settings.temperature);
  const auto weight = [&](int32_t v) { return std::exp((logit(v) - largest) / temperature); };

  if (settings.top_p < 1) {
    double total = 0, before = 0;
    for (int32_t v : order) total += weight(v);
    size_t kept = 0;
    while (kept < order.size() && before < static_cast<double>(settings.top_p) * total)
      before += weight(order[kept++]);
    order.resize(std::max<size_t>(kept, 1));
  }

  while (order.size() > 1 && weight(order.back()) < static_cast<double>(settings.min_p))
    order.pop_back();

  double total = 0, sum = 0;
  for (int32_t v : order) total += weight(v);
  const double target = uniform(settings.seed, position) * total;
  for (int32_t v : order) {
    sum += weight(v);
    if (sum > target) return v;
  }
  return order.back();
}

}  // namespace

void RefBackend::run(const ops::Embedding& op) {
  const Floats table(op.table), x(op.x);
  const Integers tokens(op.tokens);
  for (int64_t n = 0; n < op.x.dim(0); ++n)
    for (int64_t d = 0; d < op.x.dim(1); ++d) x(n, d) = table(tokens[n], d);
}

void RefBackend::run(const ops::EmbeddingBackward& op) {
  const int64_t width = op.dx.dim(1);
  const Floats dx(op.dx), dtable(op.dtable);
  const Integers tokens(op.tokens);
  // Sums are rounded once a token, so those of the tokens that occur are gathered first.
  const std::set<int32_t> present(op.tokens.as<int32_t>(),
                                  op.tokens.as<int32_t>() + op.tokens.numel());
  for (int32_t token : present) {
    std::vector<double> sum(static_cast<size_t>(width), 0.0);
    for (int64_t n = 0; n < op.dx.dim(0); ++n)
      if (tokens[n] == token)
        for (int64_t d = 0; d < width; ++d) sum[static_cast<size_t>(d)] += dx(n, d);
    for (int64_t d = 0; d < width; ++d) dtable(token, d) += sum[static_cast<size_t>(d)];
  }
}

void RefBackend::run(const ops::CrossEntropy& op) {
  const int64_t vocabulary = op.logits.dim(1);
  const Floats logits(op.logits), loss(op.loss), scale(op.scale), dlogits(op.dlogits);
  const Integers labels(op.labels);
  for (int64_t n = 0; n < op.logits.dim(0); ++n) {
    const bool counts = labels[n] != ops::kIgnoredLabel;
    const double log_sum = log_sum_exp(logits, n, vocabulary);
    loss(n) = counts ? log_sum - logits(n, labels[n]) : 0.0;
    if (!op.scale) continue;
    const double factor = scale[op.scale.numel() == 1 ? 0 : n];
    for (int64_t v = 0; v < vocabulary; ++v) {
      const double onehot = v == labels[n] ? 1.0 : 0.0;
      dlogits(n, v) = counts ? factor * (std::exp(logits(n, v) - log_sum) - onehot) : 0.0;
    }
  }
}

void RefBackend::run(const ops::SegmentSum& op) {
  const Floats x(op.x), y(op.y);
  const Integers starts(op.starts);
  for (int64_t s = 0; s < op.y.dim(0); ++s) {
    const int64_t begin = op.starts ? starts[s] : 0;
    const int64_t end = op.starts ? starts[s + 1] : op.x.dim(0);
    double sum = op.accumulate ? y(s) : 0.0;
    for (int64_t n = begin; n < end; ++n) sum += x(n);
    y(s) = sum;
  }
}

void RefBackend::run(const ops::Sample& op) {
  const int64_t vocabulary = op.logits.dim(1);
  const Floats logits(op.logits), bias(op.bias), log_probability(op.log_probability);
  const Integers history(op.history), allowed(op.allowed), positions(op.positions),
      tokens(op.tokens);
  for (int64_t s = 0; s < op.logits.dim(0); ++s) {
    if (positions[s] == ops::kPadding) continue;
    ops::SamplingSettings settings;
    std::memcpy(&settings, op.settings[s].data(), sizeof settings);
    std::vector<double> z;
    z.reserve(static_cast<size_t>(vocabulary));
    for (int64_t v = 0; v < vocabulary; ++v)
      z.push_back(logits(s, v) + (op.bias ? bias(s, v) : 0.0));
    if (op.history) {
      const int64_t width = op.history.dim(1);
      const auto penalty = static_cast<double>(settings.repeat_penalty);
      std::set<int32_t> recent;
      for (int64_t i = 0; i < width; ++i)
        if (ops::in_history(i, width, positions[s], settings.repeat_last_n))
          recent.insert(history(s, i));
      for (int32_t token : recent) {
        if (token < 0 || token >= vocabulary) continue;
        double& logit = z[static_cast<size_t>(token)];
        logit = logit > 0 ? logit / penalty : logit * penalty;
      }
    }
    for (int64_t v = 0; op.allowed && v < vocabulary; ++v)
      if ((allowed(s, v / 32) >> (v % 32) & 1) == 0)
        z[static_cast<size_t>(v)] = -std::numeric_limits<double>::infinity();
    tokens[s] = draw(std::move(z), settings, positions[s]);
    if (op.log_probability)
      log_probability(s) = logits(s, tokens[s]) - log_sum_exp(logits, s, vocabulary);
  }
}

void RefBackend::run(const ops::Advance& op) {
  const Integers drawn(op.drawn), inputs(op.inputs), positions(op.positions), history(op.history);
  for (int64_t s = 0; s < op.drawn.dim(0); ++s) {
    if (positions[s] == ops::kPadding) continue;
    inputs[s] = drawn[s];
    positions[s] += 1;
    if (op.history) history(s, positions[s] % op.history.dim(1)) = drawn[s];
  }
}

}  // namespace mixtral::ref
