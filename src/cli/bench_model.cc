#include "cli/bench_model.h"

#include "model/checkpoint.h"

namespace mixtral {

BenchModel choose_bench_model(const CommonOptions& common, const ModelSource& source,
                              const ModelConfig& config, const Backend& backend, bool cut,
                              int64_t context) {
  BenchModel chosen;
  chosen.reads = source.has_weights() && !cut && !common.random_weights;
  ParameterFormats stored;
  if (chosen.reads && !common.quantization()) stored = source.stored_formats(backend, common.dtype);
  chosen.precision =
      choose_precision(common.dtype, backend, Purpose::inference, config.dtype, stored);
  chosen.options = {.weights = chosen.precision.weights,
                    .compute = chosen.precision.compute,
                    .context = context,
                    .rope_frequencies = common.rope_dtype(),
                    .quantization = common.quantization(),
                    .formats = stored,
                    .operands = chosen.precision.operands,
                    .cache = common.cache_type(),
                    .fixed_weights = true};
  require_fp8_weights(common.dtype, common.quantization());
  return chosen;
}

void fill_bench_model(const CommonOptions& common, const ModelSource& source,
                      const BenchModel& chosen, Backend& backend, Mixtral& model) {
  if (chosen.reads)
    load_weights(backend, model, source.tensors());
  else
    draw_weights(backend, model, common.seed);
}

double reading_flops(const ModelConfig& c, int64_t depth, int64_t context, int64_t prompts) {
  const int64_t qkv = c.hidden_size * c.head_dim * (c.num_heads + 2 * c.num_kv_heads);
  const int64_t head = c.vocab_size * c.hidden_size;
  const int64_t layer = (count_parameters(c).active - head) / c.num_layers;
  const auto scores = [&](int64_t keys) { return 4 * c.num_heads * c.head_dim * keys; };
  const int64_t each =
      2 * ((c.num_layers - 1) * layer + qkv) + (c.num_layers - 1) * scores(2 * depth + context) / 2;
  const int64_t last = 2 * (layer - qkv + head) + scores(depth + context);
  return static_cast<double>(prompts) *
         (static_cast<double>(context) * static_cast<double>(each) + static_cast<double>(last));
}

double writing_flops(const ModelConfig& c, int64_t prompt, int64_t tokens) {
  const double keys = static_cast<double>(tokens) *
                      (static_cast<double>(prompt) + 0.5 * static_cast<double>(tokens - 1));
  return 2 * static_cast<double>(tokens) * static_cast<double>(count_parameters(c).active) +
         4 * static_cast<double>(c.num_layers * c.num_heads * c.head_dim) * keys;
}

}  // namespace mixtral
