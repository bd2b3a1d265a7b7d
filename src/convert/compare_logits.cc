#include "convert/compare_logits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "convert/streamed_model.h"

namespace mixtral {
namespace {

/// The most likely token of each row, and its logit.
void note_top(const std::vector<float>& logits, int64_t vocabulary, LogitComparison& to) {
  const auto width = static_cast<size_t>(vocabulary);
  for (size_t at = 0; at < logits.size(); at += width) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(at);
    const auto top = std::max_element(begin, begin + static_cast<std::ptrdiff_t>(width));
    to.top.push_back(static_cast<int32_t>(top - begin));
    to.largest.push_back(static_cast<double>(*top));
  }
}

double agreement(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int64_t same = 0;
  for (size_t i = 0; i < a.size(); ++i) same += a[i] == b[i];
  return a.empty() ? 1 : static_cast<double>(same) / static_cast<double>(a.size());
}

std::vector<float> logits_of(Backend& backend, const ModelWeights& model,
                             const std::vector<int32_t>& tokens) {
  std::vector<float> logits = streamed_logits(backend, model.tensors, model.config, tokens);
  for (const float logit : logits)
    if (!std::isfinite(logit))
      throw Error(fmt::format("{}: the model's logits are not finite numbers",
                              model.tensors.path().string()));
  return logits;
}

}  // namespace

std::vector<int32_t> probe_tokens(const ModelConfig& config) {
  std::vector<int32_t> ids;
  const int64_t count = std::min<int64_t>(16, config.max_positions);
  ids.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>((i * 7919 + 13) % config.vocab_size));
  return ids;
}

LogitComparison compare_logits(Backend& backend, const ModelWeights& source,
                               const ModelWeights& target) {
  LogitComparison result{.tokens = probe_tokens(source.config)};
  const std::vector<float> a = logits_of(backend, source, result.tokens);
  const std::vector<float> b = logits_of(backend, target, result.tokens);
  CHECK(a.size() == b.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference =
        std::max(difference, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    size = std::max(size, std::abs(static_cast<double>(a[i])));
  }
  result.difference = size > 0 ? difference / size : difference;
  LogitComparison other;
  note_top(a, source.config.vocab_size, result);
  note_top(b, source.config.vocab_size, other);
  result.top_agreement = agreement(result.top, other.top);
  result.compared = true;
  return result;
}

LogitComparison compare_logits(Backend& backend, const LogitComparison& noted,
                               const ModelWeights& target) {
  LogitComparison result = noted, found;
  note_top(logits_of(backend, target, noted.tokens), target.config.vocab_size, found);
  if (found.top.size() != noted.top.size())
    throw Error(fmt::format("{}: the receipt is of a model with another vocabulary",
                            target.tensors.path().string()));
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.largest.size(); ++i) {
    difference = std::max(difference, std::abs(found.largest[i] - noted.largest[i]));
    size = std::max(size, std::abs(noted.largest[i]));
  }
  result.difference = size > 0 ? difference / size : difference;
  result.top_agreement = agreement(noted.top, found.top);
  return result;
}

}  // namespace mixtral
