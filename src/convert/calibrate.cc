#include "convert/calibrate.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "convert/streamed_model.h"
#include "data/batches.h"

namespace mixtral {
namespace {

constexpr double kPriorTokens = 64;  // that the layer's mean counts for, beside an expert's own

/// Sums of squares by column, over so many rows.
struct Squares {
  std::vector<double> sums;
  int64_t rows = 0;

  void add(const Tensor& x) {
    const int64_t columns = x.dim(1);
    sums.resize(static_cast<size_t>(columns));
    for (int64_t row = 0; row < x.dim(0); ++row) {
      const float* values = x.as<float>() + row * columns;
      for (int64_t i = 0; i < columns; ++i)
        sums[static_cast<size_t>(i)] +=
            static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    rows += x.dim(0);
  }
  void add(const Squares& other) {
    sums.resize(std::max(sums.size(), other.sums.size()));
    for (size_t i = 0; i < other.sums.size(); ++i) sums[i] += other.sums[i];
    rows += other.rows;
  }
};

std::vector<float> mean_of(const Squares& own, const Squares& layer) {
  const double shared = layer.rows > 0 ? kPriorTokens / static_cast<double>(layer.rows) : 0;
  const double weight = static_cast<double>(own.rows) + (layer.rows > 0 ? kPriorTokens : 0);
  std::vector<float> mean(layer.sums.size());
  for (size_t i = 0; i < mean.size(); ++i) {
    const double sum = (own.sums.empty() ? 0 : own.sums[i]) + shared * layer.sums[i];
    mean[i] = weight > 0 ? static_cast<float>(sum / weight) : 0;
  }
  return mean;
}

}  // namespace

HostBatch sample_text(const ModelSource& source, const std::filesystem::path& file,
                      const SampleOptions& options) {
  const ModelConfig& config = source.config();
  ThreadPool pool(options.threads);
  CorpusOptions how;
  how.encode.rules.vocab_size = config.vocab_size;
  if (const auto noted = source.chat_template()) how.encode.rules.chat_template = *noted;
  const Corpus corpus = load_corpus(file, source.tokenizer().get(), how, pool);
  const int64_t context = std::min(options.context, config.max_positions);
  Batches batches(corpus, {.context = context,
                           .rows = std::max<int64_t>(1, options.tokens / context),
                           .packing = Packing::fill,
                           .endless = false,
                           .data = file.string()});
  auto batch = batches.next();
  if (!batch || batch->label_count() == 0)
    throw Error(fmt::format("{}: there is no text to score in it", file.string()));
  return std::move(*batch);
}

Calibration calibrate(Backend& backend, const ModelSource& source, const HostBatch& host) {
  PartReader reader(source.tensors(), source.config());
  StreamedModel model(backend, reader);
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  const Batch batch = upload(ctx, host, source.config().vocab_size, source.config().max_positions);
  std::map<TensorId, Squares> squares;
  const Tensor hidden =
      model.hidden(ctx, batch, [&](const TensorId& id, const Tensor& x) { squares[id].add(x); });
  Squares last;
  last.add(hidden);

  Calibration result{.tokens = host.size()};
  std::map<TensorId, Squares> layers;  // by kind and layer, of all experts
  for (const auto& [id, own] : squares) layers[{.kind = id.kind, .layer = id.layer}].add(own);
  for_each_tensor(source.config(), [&](const TensorId& id) {
    if (id.kind == TensorKind::head) result.importance[id] = mean_of(last, last);
    const auto layer = layers.find({.kind = id.kind, .layer = id.layer});
    if (layer == layers.end()) return;
    const Squares& own = squares[id];
    result.importance[id] = mean_of(own, layer->second);
    if (id.kind == TensorKind::w1 && static_cast<double>(own.rows) < kPriorTokens)
      ++result.rare_experts;
  });
  return result;
}

}  // namespace mixtral
