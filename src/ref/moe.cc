#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

/// The softmax of row n, and the logarithm of its denominator.
struct Softmax {
  std::vector<double> probability;
  double log_sum = 0;
};

Softmax softmax(const Floats& logits, int64_t n, int64_t experts) {
  double largest = logits(n, 0);
  for (int64_t e = 1; e < experts; ++e) largest = std::max<double>(largest, logits(n, e));
  double total = 0;
  for (int64_t e = 0; e < experts; ++e) total += std::exp(logits(n, e) - largest);
  Softmax result;
  result.log_sum = largest + std::log(total);
  for (int64_t e = 0; e < experts; ++e)
    result.probability.push_back(std::exp(logits(n, e) - largest) / total);
  return result;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

void RefBackend::run(const ops::Route& op) {
  const int64_t tokens = op.logits.dim(0), experts = op.logits.dim(1), k = op.weights.dim(1);
  const Floats logits(op.logits), weights(op.weights);
  const Integers expert(op.expert), slot(op.slot), source(op.source), offsets(op.offsets);
  const Integers positions(op.positions);
  for (int64_t n = 0; n < tokens; ++n) {
    if (positions && positions[n] == ops::kPadding) {
      for (int64_t j = 0; j < k; ++j) {
        weights(n, j) = 0;
        expert(n, j) = slot(n, j) = -1;
      }
      continue;
    }
    std::vector<bool> chosen(static_cast<size_t>(experts), false);
    for (int64_t j = 0; j < k; ++j) {
      int32_t best = -1;
      for (int32_t e = 0; e < experts; ++e) {
        if (chosen[static_cast<size_t>(e)]) continue;
        if (best < 0 || logits(n, e) > logits(n, best)) best = e;
      }
      chosen[static_cast<size_t>(best)] = true;
      expert(n, j) = best;
    }
    const double largest = logits(n, expert(n, 0));
    double total = 0;
    for (int64_t j = 0; j < k; ++j) total += std::exp(logits(n, expert(n, j)) - largest);
    for (int64_t j = 0; j < k; ++j)
      weights(n, j) = std::exp(logits(n, expert(n, j)) - largest) / total;
  }
  int32_t row = 0;
  for (int32_t e = 0; e < experts; ++e) {
    offsets[e] = row;
    for (int64_t n = 0; n < tokens; ++n) {
      for (int64_t j = 0; j < k; ++j) {
        if (expert(n, j) != e) continue;
        slot(n, j) = row;
        source[row++] = static_cast<int32_t>(n * k + j);
      }
    }
  }
  offsets[experts] = row;
  for (; row < tokens * k; ++row) source[row] = 0;
}

void RefBackend::run(const ops::RouteBackward& op) {
  const int64_t tokens = op.logits.dim(0), experts = op.logits.dim(1), k = op.weights.dim(1);
  const Floats logits(op.logits), weights(op.weights), dweights(op.dweights);
  const Floats dprobability(op.dprobability), dlogits(op.dlogits);
  const Integers expert(op.expert);
  for (int64_t n = 0; n < tokens; ++n) {
    const auto [p, log_sum] = softmax(logits, n, experts);
    double w_dw = 0;  // Σ_K w dw
    for (int64_t j = 0; j < k; ++j) w_dw += weights(n, j) * dweights(n, j);
    double p_dp = 0;  // Σ p · dprobability
    if (op.dprobability)
      for (int64_t e = 0; e < experts; ++e) p_dp += p[static_cast<size_t>(e)] * dprobability(e);
    for (int64_t e = 0; e < experts; ++e) {
      const double p_e = p[static_cast<size_t>(e)];
      double gradient = op.z_scale * 2 * log_sum * p_e;
      if (op.dprobability) gradient += p_e * (dprobability(e) - p_dp);
      for (int64_t j = 0; j < k; ++j)
        if (expert(n, j) == e) gradient += weights(n, j) * (dweights(n, j) - w_dw);
      dlogits(n, e) = gradient;
    }
  }
}

void RefBackend::run(const ops::RouterStatistics& op) {
  const int64_t tokens = op.logits.dim(0), experts = op.logits.dim(1);
  const Floats logits(op.logits), load(op.load), importance(op.importance), z(op.z);
  const Floats entropy(op.entropy);
  const Integers offsets(op.offsets), positions(op.positions);
  std::vector<double> probability(static_cast<size_t>(experts), 0.0);
  double squares = 0, entropies = 0, count = 0;
  for (int64_t n = 0; n < tokens; ++n) {
    if (positions && positions[n] == ops::kPadding) continue;
    ++count;
    const auto [p, log_sum] = softmax(logits, n, experts);
    squares += log_sum * log_sum;
    for (int64_t e = 0; e < experts; ++e) {
      const double p_e = p[static_cast<size_t>(e)];
      probability[static_cast<size_t>(e)] += p_e;
      if (p_e > 0) entropies -= p_e * (logits(n, e) - log_sum);
    }
  }
  count = std::max(count, 1.0);
  for (int64_t e = 0; e < experts; ++e) {
    load(e) = (offsets[e + 1] - offsets[e]) / count;
    importance(e) = probability[static_cast<size_t>(e)] / count;
  }
  z(0) = squares / count;
  entropy(0) = entropies / count;
}

void RefBackend::run(const ops::BalanceLoss& op) {
  const int64_t layers = op.load.dim(0), experts = op.load.dim(1);
  const auto depth = static_cast<double>(layers), width = static_cast<double>(experts);
  const Floats load(op.load), importance(op.importance), z(op.z), losses(op.losses);
  const Floats dprobability(op.dprobability);
  const auto mean = [&](const Floats& x, int64_t e) {
    double sum = 0;
    for (int64_t l = 0; l < layers; ++l) sum += x(l, e);
    return sum / depth;
  };
  double aux = 0, z_loss = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (op.pooled) aux += width * mean(load, e) * mean(importance, e);
    for (int64_t l = 0; l < layers; ++l) {
      if (!op.pooled) aux += width * load(l, e) * importance(l, e) / depth;
      if (op.dprobability) {
        // importance is a mean over tokens, and enters the loss as a mean over layers.
        const double factor = op.pooled ? mean(load, e) : static_cast<double>(load(l, e));
        dprobability(l, e) =
            op.coefficient * width * factor / (depth * static_cast<double>(op.tokens));
      }
    }
  }
  for (int64_t l = 0; l < layers; ++l) z_loss += z(l) / depth;
  losses(0) = aux;
  losses(1) = z_loss;
}

void RefBackend::run(const ops::GatherRows& op) {
  const Floats x(op.x), y(op.y);
  const Integers source(op.source);
  for (int64_t r = 0; r < op.y.dim(0); ++r)
    for (int64_t d = 0; d < op.y.dim(1); ++d) y(r, d) = x(source[r] / op.divisor, d);
}

void RefBackend::run(const ops::CombineRows& op) {
  const Floats y(op.y), residual(op.residual), out(op.out);
  const Integers slot(op.slot);
  for (int64_t n = 0; n < op.out.dim(0); ++n) {
    for (int64_t d = 0; d < op.out.dim(1); ++d) {
      double sum = 0;
      for (int64_t j = 0; j < op.slot.dim(1); ++j) {
        if (slot(n, j) >= 0) sum += y(slot(n, j), d);
      }
      if (op.residual) sum += residual(n, d);
      out(n, d) = sum;
    }
  }
}

void RefBackend::run(const ops::SwiGlu& op) {
  const int64_t width = op.h.dim(1);
  const Floats gate_up(op.gate_up), weights(op.weights), h(op.h);
  const Integers source(op.source);
  for (int64_t r = 0; r < op.h.dim(0); ++r) {
    const double w = weights[source[r]];
    for (int64_t f = 0; f < width; ++f) {
      const double gate = gate_up(r, f), up = gate_up(r, width + f);
      h(r, f) = w * (gate * sigmoid(gate)) * up;
    }
  }
}

void RefBackend::run(const ops::SwiGluBackward& op) {
  const int64_t width = op.dh.dim(1);
  const Floats gate_up(op.gate_up), weights(op.weights), dh(op.dh), d_gate_up(op.d_gate_up);
  const Floats dweights(op.dweights), h(op.h);
  const Integers source(op.source);
  for (int64_t r = 0; r < op.dh.dim(0); ++r) {
    const double w = weights[source[r]];
    double dw = 0;
    for (int64_t f = 0; f < width; ++f) {
      const double gate = gate_up(r, f), up = gate_up(r, width + f), gradient = dh(r, f);
      const double s = sigmoid(gate);
      dw += gradient * (gate * s) * up;
      d_gate_up(r, f) = w * gradient * up * s * (1 + gate * (1 - s));
      d_gate_up(r, width + f) = w * gradient * (gate * s);
      if (op.h) h(r, f) = w * (gate * s) * up;
    }
    dweights[source[r]] = dw;
  }
}

}  // namespace mixtral::ref
