#include "ops/optim.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {

void RefBackend::run(const ops::SquaredNorm& op) {
  const Floats x(op.x), sum(op.sum);
  double squares = 0;
  for (int64_t i = 0; i < x.size(); ++i) squares += x[i] * x[i];
  const double before = op.accumulate ? sum(0) : 0.0;
  sum(0) = before + squares;
}

void RefBackend::run(const ops::AdamW& op) {
  const Floats value(op.value), grad(op.grad), m(op.m), v(op.v), model(op.model);
  const Floats schedule(op.schedule), squared_norm(op.squared_norm);
  if (!std::isfinite(squared_norm(0))) return;
  const double norm = std::sqrt(squared_norm(0));
  const double shrink = op.clip > 0 ? std::min(1.0, op.clip / (norm + 1e-6)) : 1.0;
  const double rate = schedule(0), correction1 = schedule(1), correction2 = schedule(2);
  const auto step = static_cast<uint64_t>(schedule(3));
  const bool narrow = op.m.dtype() == Dtype::bf16;
  for (int64_t i = 0; i < value.size(); ++i) {
    const double g = grad(i) * shrink;
    const double new_m = op.beta1 * m(i) + (1 - op.beta1) * g;
    const double new_v = op.beta2 * v(i) + (1 - op.beta2) * g * g;
    const double decayed = value(i) - rate * op.weight_decay * value(i);
    value(i) = decayed - rate * (new_m / correction1) / (std::sqrt(new_v / correction2) + op.eps);
    if (narrow) {
      const auto words = philox(op.seed, step, static_cast<uint64_t>(i));
      op.m.as<bf16>()[i] = ops::round_stochastically(static_cast<float>(new_m), words[0]);
      op.v.as<bf16>()[i] = ops::round_stochastically(static_cast<float>(new_v), words[1]);
    } else {
      m(i) = new_m;
      v(i) = new_v;
    }
    if (op.model) model(i) = value(i);
  }
}

}  // namespace mixtral::ref
