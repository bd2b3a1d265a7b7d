#include "surgery/expert_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "convert/streamed_model.h"
#include "data/corpus.h"
#include "model/checkpoint.h"

namespace mixtral {
namespace {

/// Adds rows `begin` to before `end` of x [n, D], times `weight`.
void add_rows(const Tensor& x, int64_t begin, int64_t end, double weight, std::vector<double>& to) {
  const int64_t width = x.dim(1);
  to.resize(static_cast<size_t>(width));
  for (int64_t row = begin; row < end; ++row) {
    const float* values = x.as<float>() + row * width;
    for (int64_t i = 0; i < width; ++i)
      to[static_cast<size_t>(i)] += weight * static_cast<double>(values[i]);
  }
}

double norm_of(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return std::sqrt(sum);
}

/// At most `count` rows of x, spread evenly.
Tensor spread_rows(Context& ctx, const Tensor& x, int64_t count) {
  const int64_t n = std::min(count, x.dim(0)), width = x.dim(1);
  const Tensor rows = ctx.allocate({n, width});
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(rows.as<float>() + i * width, x.as<float>() + i * x.dim(0) / n * width,
                static_cast<size_t>(width) * sizeof(float));
  return rows;
}

}  // namespace

ExpertStatistics gather_statistics(Backend& backend, const ModelSource& source,
                                   const HostBatch& text, const StatisticsOptions& options) {
  const ModelConfig& config = source.config();
  const auto experts = static_cast<size_t>(config.num_experts);
  check_weights(config, source.tensors());
  PartReader reader(source.tensors(), config);
  StreamedModel model(backend, reader);
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  const Batch batch = upload(ctx, text, config.vocab_size, config.max_positions);
  ExpertStatistics found{.tokens = text.size(), .layers = {}};
  for (int64_t i = 0; i < config.num_layers; ++i)
    found.layers.push_back({.load = std::vector<int64_t>(experts),
                            .saliency = std::vector<double>(experts),
                            .output = {}});
  StreamedModel::Listener listener;
  listener.expert = [&](int64_t layer, int64_t expert, const Tensor& y) {
    LayerStatistics& own = found.layers[static_cast<size_t>(layer)];
    double sum = 0;
    for (int64_t row = 0; row < y.dim(0); ++row)
      sum += norm_of(y.as<float>() + row * y.dim(1), y.dim(1));
    own.load[static_cast<size_t>(expert)] = y.dim(0);
    own.saliency[static_cast<size_t>(expert)] = sum / static_cast<double>(y.dim(0));
  };
  if (options.output_tokens > 0)
    listener.layer = [&](Context& within, int64_t layer, const Tensor& x) {
      const ArenaScope scope(within.arena());
      const Tensor rows = spread_rows(within, x, options.output_tokens);
      LayerStatistics& own = found.layers[static_cast<size_t>(layer)];
      own.output.resize(experts);
      for (size_t e = 0; e < experts; ++e) {
        const ArenaScope expert(within.arena());
        const Tensor y = model.expert_output(within, layer, static_cast<int64_t>(e), rows);
        add_rows(y, 0, y.dim(0), 1 / static_cast<double>(y.dim(0)), own.output[e]);
      }
    };
  model.hidden(ctx, batch, listener);
  return found;
}

std::vector<std::vector<double>> mean_router_inputs(Backend& backend, const ModelSource& source,
                                                    const HostBatch& text) {
  const ModelConfig& config = source.config();
  check_weights(config, source.tensors());
  PartReader reader(source.tensors(), config);
  StreamedModel model(backend, reader);
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  const Batch batch = upload(ctx, text, config.vocab_size, config.max_positions);
  std::vector<std::vector<double>> means(static_cast<size_t>(config.num_layers));
  StreamedModel::Listener listener;
  listener.layer = [&](Context&, int64_t layer, const Tensor& x) {
    const auto sequences = static_cast<double>(text.sequences());
    for (size_t s = 0; s + 1 < text.sequence_starts.size(); ++s) {
      const int64_t begin = text.sequence_starts[s], end = text.sequence_starts[s + 1];
      add_rows(x, begin, end, 1 / (sequences * static_cast<double>(end - begin)),
               means[static_cast<size_t>(layer)]);
    }
  };
  model.hidden(ctx, batch, listener);
  return means;
}

HostBatch read_prompts(const ModelSource& source, const std::filesystem::path& file, int64_t tokens,
                       int64_t context, int threads) {
  ThreadPool pool(threads);
  CorpusOptions how;
  how.encode.rules.vocab_size = source.config().vocab_size;
  if (const auto noted = source.chat_template()) how.encode.rules.chat_template = *noted;
  const Corpus corpus = load_corpus(file, source.tokenizer().get(), how, pool);
  context = std::min(context, source.config().max_positions);
  HostBatch batch;
  for (int64_t d = 0; d < corpus.documents(); ++d) {
    const int64_t end = corpus.starts()[static_cast<size_t>(d) + 1];
    for (int64_t at = corpus.starts()[static_cast<size_t>(d)]; at < end; at += context) {
      const int64_t count = std::min({context, end - at, tokens - batch.size()});
      if (count <= 0) break;
      std::vector<int32_t> ids;
      for (int64_t i = at; i < at + count; ++i) ids.push_back(corpus.token(i));
      batch.append(ids);
    }
  }
  if (batch.size() == 0) throw Error(fmt::format("{}: there is no prompt in it", file.string()));
  return batch;
}

}  // namespace mixtral
