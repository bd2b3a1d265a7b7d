#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "infer/engine.h"
#include "infer/speculation.h"
#include "model/adapter.h"
#include "model/adapter_set.h"
#include "model/expert_cache.h"
#include "model/host_experts.h"
#include "model/mixtral.h"
#include "open/model_source.h"
#include "train/training_plan.h"

namespace mixtral {

/// How numbers are held and multiplied.
struct Precision {
  Dtype weights = Dtype::f32;
  Dtype compute = Dtype::f32;
  ops::Operands operands = ops::Operands::exact;
};

/// What a model is opened for.
enum class Purpose {
  inference,
  training,  // of the model's own weights
  tuning,    // of an adapter, on weights that stay as they are
};

/// What the setting `dtype` means on a device. fp32: everything in f32 (on `ref`, f32 storage).
/// fp64: `ref` only. bf16: on a GPU, weights and activations in bf16; on a CPU, weights in bf16 for
/// inference, and products of bf16-rounded operands. auto: bf16 on a GPU; on a CPU f32, except that
/// a model stored in 16 bits stays so where its weights are not trained. For inference, a CPU
/// rounds activations as the weights beside them are: to 8 bits beside quantized ones, to bf16
/// beside bf16 (ops::Operands::as_weight), except in fp32. fp8: as bf16, on a GPU, for inference
/// alone, and activations beside weights in fp8 are rounded to it (ops::Operands::fp8). Throws
/// UsageError.
Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored);

/// The same for a model of which some parameters keep the formats of its files: beside weights in
/// few bits the others keep all of theirs.
Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored, const ParameterFormats& formats);

/// How a model is opened, for every command.
struct OpenOptions {
  std::string device = "auto";
  int threads = 0;  // 0: one a core
  std::string dtype = "auto";
  Dtype rope_frequencies = Dtype::f32;
  std::optional<ops::WeightFormat> quantization = {};
  std::optional<ops::CacheType> cache = {};  // Mixtral::Options::cache
  bool batch_invariant = false;              // Backend::set_batch_invariant
  bool random_weights = false;               // drawn from the seed instead of read
  uint64_t seed = 1;
  int64_t context = 0;    // positions to prepare for
  int64_t sequences = 1;  // of a cache that is to follow, for which there must be memory
  int64_t chunk = 0;      // prompt tokens of a step of its engine; 0: what suits the device
  // Speculative decoding: draft tokens of a sequence in a step (0: none), and the name of the model
  // that drafts them (empty: they are looked up in the sequence).
  int64_t draft_tokens = 0;
  std::string draft_model = {};
  /// Bytes of the device's memory for experts. The other experts are read from the disk, or copied
  /// from the host's memory to a GPU, when they are needed. Absent: all experts are in the device's
  /// memory, or as many as fit. For inference without `pass`.
  std::optional<int64_t> expert_memory = {};
  /// A pass over batches that is to follow, for which there must be memory: rows, context,
  /// objective and what else decides it. Its configuration, options and adapter are filled in here.
  std::optional<TrainingShape> pass = {};
};

/// A model on its device, ready to compute.
struct OpenedModel {
  std::unique_ptr<Backend> backend;
  Precision precision;
  std::unique_ptr<Mixtral> model;
  std::unique_ptr<HostExperts> host_experts;  // where a GPU's are streamed; else null
  std::unique_ptr<ExpertCache>
      experts;                       // where they are streamed; else null. Goes before the model
  std::unique_ptr<Adapter> adapter;  // where one is tuned; else null. Goes before the model
  std::unique_ptr<AdapterSet> adapters;  // in inference; else null. Goes before the model
  std::unique_ptr<Mixtral> draft_model;  // where one was named
  int64_t draft_tokens = 0;
  int64_t chunk = 0, lone_chunk = 0;  // Engine::Options that there is memory for
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Context> ctx;

  /// For an engine with this model.
  Engine::Options engine_options() const {
    return {.chunk = chunk,
            .lone_chunk = lone_chunk,
            .adapters = adapters.get(),
            .speculation = {.tokens = draft_tokens, .draft_model = draft_model.get()}};
  }
};

/// Opens device, model and adapter (in inference as the own one of a set), with an arena of the
/// size that the pass takes. Throws Error, before anything is allocated, where they do not fit the
/// device's memory, `context` the model, or a draft model the model, and UsageError.
OpenedModel open_model(const ModelSource& source, const OpenOptions& options,
                       const ModelSource::Note& note);

/// Throws UsageError where `dtype` is fp8 and weights are not quantized to it.
void require_fp8_weights(std::string_view dtype, std::optional<ops::WeightFormat> quantization);

/// Throws UsageError when more positions are asked for than a model has.
void require_positions(int64_t context, const ModelConfig& config);

/// Draws a model's weights from a seed, on its device, as training from scratch would.
void draw_weights(Backend& backend, Mixtral& model, uint64_t seed);

/// The model alone, whose memory the caller has planned: read, or drawn where `seed` says so or the
/// source is a built-in configuration (of which `note` is told).
struct WeightsFrom {
  bool random = false;
  uint64_t seed = 1;
};
std::unique_ptr<Mixtral> open_weights(Backend& backend, const ModelSource& source,
                                      const Mixtral::Options& options, const WeightsFrom& from,
                                      const ModelSource::Note& note);

/// What a pass will take. Throws Error with an itemised table when the device has not that much.
MemoryPlan require_pass_memory(const Backend& backend, const TrainingShape& shape);

}  // namespace mixtral
