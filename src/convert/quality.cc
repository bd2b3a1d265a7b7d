#include "convert/quality.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "convert/streamed_model.h"
#include "ops/vocab.h"

namespace mixtral {
namespace {

constexpr int64_t kLogitRows = 256;  // of logits

/// log softmax of a row, and its largest place.
struct LogProbabilities {
  std::vector<double> values;
  int64_t top = 0;

  void set(const float* logits, int64_t count) {
    values.resize(static_cast<size_t>(count));
    top = std::max_element(logits, logits + count) - logits;
    const auto largest = static_cast<double>(logits[top]);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
    const double log_sum = largest + std::log(sum);
    for (int64_t i = 0; i < count; ++i)
      values[static_cast<size_t>(i)] = static_cast<double>(logits[i]) - log_sum;
  }
};

double divergence(const LogProbabilities& a, const LogProbabilities& b) {
  double sum = 0;
  for (size_t i = 0; i < a.values.size(); ++i)
    sum += std::exp(a.values[i]) * (a.values[i] - b.values[i]);
  return sum;
}

double relative_error(const Tensor& a, const Tensor& b) {
  double difference = 0, size = 0;
  const auto x = a.span<float>(), y = b.span<float>();
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    difference += d * d;
    size += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return size > 0 ? difference / size : 0;
}

}  // namespace

Quality measure_quality(Backend& backend, const ModelWeights& before, const ModelWeights& after,
                        const HostBatch& host) {
  PartReader readers[] = {{before.tensors, before.config}, {after.tensors, after.config}};
  StreamedModel models[] = {{backend, readers[0]}, {backend, readers[1]}};
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  const int64_t vocabulary = before.config.vocab_size;
  const Batch batch = upload(ctx, host, vocabulary, before.config.max_positions);
  const Tensor hidden[] = {models[0].hidden(ctx, batch), models[1].hidden(ctx, batch)};
  Quality quality{.hidden_error = relative_error(hidden[0], hidden[1])};
  double loss[2] = {0, 0};
  LogProbabilities p[2];
  for (int64_t begin = 0; begin < host.size(); begin += kLogitRows) {
    const int64_t end = std::min(begin + kLogitRows, host.size());
    const ArenaScope scope(ctx.arena());
    const Tensor logits[] = {models[0].logits(ctx, hidden[0].slice(begin, end)),
                             models[1].logits(ctx, hidden[1].slice(begin, end))};
    for (int64_t row = 0; row < end - begin; ++row) {
      const int32_t label = host.labels[static_cast<size_t>(begin + row)];
      if (label == ops::kIgnoredLabel) continue;
      for (int i = 0; i < 2; ++i) {
        p[i].set(logits[i].as<float>() + row * vocabulary, vocabulary);
        loss[i] -= p[i].values[static_cast<size_t>(label)];
      }
      quality.divergence += divergence(p[0], p[1]);
      quality.top_agreement += p[0].top == p[1].top;
      ++quality.tokens;
    }
  }
  if (quality.tokens == 0) throw Error("there is no token to score; every label is masked");
  const auto count = static_cast<double>(quality.tokens);
  quality.before = std::exp(loss[0] / count);
  quality.after = std::exp(loss[1] / count);
  quality.divergence /= count;
  quality.top_agreement /= count;
  return quality;
}

}  // namespace mixtral
