#include "infer/token_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace mixtral {

TokenScores score_token(const Tensor& logits, int32_t id, int64_t best) {
  std::vector<double> values(static_cast<size_t>(logits.numel()));
  if (logits.dtype() == Dtype::f64)
    std::ranges::copy(logits.span<double>(), values.begin());
  else
    std::ranges::copy(logits.span<float>(), values.begin());
  CHECK(id >= 0 && static_cast<size_t>(id) < values.size() && best >= 0);
  const double largest = *std::ranges::max_element(values);
  double sum = 0;
  for (const double value : values) sum += std::exp(value - largest);
  const double log_sum = std::log(sum);
  const auto score = [&](int32_t token) {
    return values[static_cast<size_t>(token)] - largest - log_sum;
  };
  TokenScores scores{.log_probability = score(id)};
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<std::ptrdiff_t>(best, std::ssize(order));
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    const double x = values[static_cast<size_t>(a)], y = values[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (auto token = order.begin(); token != end; ++token)
    scores.best.push_back({*token, score(*token)});
  return scores;
}

}  // namespace mixtral
