#include "open/open_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backends/registry.h"
#include "base/advice.h"
#include "infer/inference_plan.h"
#include "model/checkpoint.h"
#include "open/expert_streaming.h"
#include "open/open_within.h"
#include "train/defaults.h"

namespace mixtral {
namespace {

/// What an engine with such a cache and such steps takes with the model.
InferenceShape inference_shape(const ModelConfig& config, const Mixtral::Options& options,
                               const OpenOptions& o) {
  return {.config = config,
          .options = options,
          .sequences = o.sequences,
          .context = options.context > 0 ? options.context : config.max_positions,
          .chunk = o.chunk,
          .draft_tokens = o.draft_tokens};
}

/// A model that drafts for another, found and planned.
struct Draft {
  ModelSource source;
  InferenceShape shape;

  /// Bytes of its weights, cache and activations, without those of an opened device.
  int64_t bytes(const Backend& backend) const {
    const auto planner = make_planning_backend(&backend);
    MemoryPlan opened;
    add_opened(opened, *planner);
    return plan_inference(*planner, shape).total() - opened.total();
  }
};

AdvisedUsageError unfit_draft(const std::string& name, const std::string& why) {
  return {why, {.subject = {"draft-model", name}}};
}

/// Throws UsageError unless both have the same tokens.
void require_same_vocabulary(const ModelSource& draft, const ModelSource& target) {
  const int64_t tokens = draft.config().vocab_size, wanted = target.config().vocab_size;
  if (tokens != wanted)
    throw unfit_draft(
        draft.name(),
        fmt::format("has a vocabulary of {} tokens, the model one of {}; expected a model with the "
                    "same vocabulary",
                    tokens, wanted));
  const auto its = draft.tokenizer(), own = target.tokenizer();
  if (!its || !own) return;
  for (int32_t id = 0; id < std::max(its->vocab_size(), own->vocab_size()); ++id) {
    const bool same =
        id < its->vocab_size() && id < own->vocab_size() && its->label(id) == own->label(id);
    if (!same)
      throw unfit_draft(draft.name(),
                        fmt::format("has another token {} than the model; expected a model with "
                                    "the same vocabulary",
                                    id));
  }
}

/// The model that --draft-model names. It is opened as the model is, but in its own files' formats.
Draft find_draft(const OpenOptions& o, const ModelSource& target, const InferenceShape& of_target,
                 const Backend& backend, const ModelSource::Note& note) {
  Draft draft{
      .source = ModelSource::resolve({.model = o.draft_model, .setting = "draft-model"}, note),
      .shape = of_target};
  const ModelSource& source = draft.source;
  source.refuse_adapter();
  require_same_vocabulary(source, target);
  if (source.config().max_positions < of_target.context)
    throw unfit_draft(o.draft_model, fmt::format("has {} positions, too few for a context of {}",
                                                 source.config().max_positions, of_target.context));
  ParameterFormats stored;
  if (!o.random_weights) stored = source.stored_formats(backend, o.dtype);
  const Precision precision =
      choose_precision(o.dtype, backend, Purpose::inference, source.config().dtype, stored);
  draft.shape.config = source.config();
  draft.shape.draft_tokens = 0;
  Mixtral::Options& options = draft.shape.options;
  options.weights = precision.weights;
  options.operands = precision.operands;
  options.quantization = std::nullopt;
  options.formats = stored;
  return draft;
}

bool is_narrow(Dtype dtype) { return dtype == Dtype::bf16 || dtype == Dtype::f16; }

Purpose purpose_of(const OpenOptions& options, const ModelSource& source) {
  if (!options.pass || options.pass->pass != Pass::gradients) return Purpose::inference;
  return source.adapter().empty() ? Purpose::training : Purpose::tuning;
}

}  // namespace

Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored) {
  const bool gpu = backend.kind() == DeviceKind::gpu;
  Precision p;
  // A CPU multiplies the weights as they are stored, unless everything is asked for in f32.
  if (purpose == Purpose::inference && backend.kind() == DeviceKind::cpu && dtype != "fp32")
    p.operands = ops::Operands::as_weight;
  if (dtype == "fp64") {
    if (backend.kind() != DeviceKind::reference)
      throw AdvisedUsageError(
          fmt::format("{} does not compute in it", backend.name()),
          {.subject = {"dtype", "fp64"}, .lead = "give", .remedies = {{{"device", "ref"}}}});
    p.weights = p.compute = Dtype::f64;
  } else if (dtype == "fp8") {
    if (!gpu || purpose != Purpose::inference)
      throw setting_error("dtype",
                          "fp8 is for generating and scoring text on a GPU; give bf16 instead");
    p.weights = p.compute = Dtype::bf16;
    p.operands = ops::Operands::fp8;
  } else if (dtype == "bf16" || (dtype == "auto" && gpu)) {
    if (gpu) {
      p.weights = p.compute = Dtype::bf16;
      p.operands = ops::Operands::bf16;
    } else {
      if (purpose != Purpose::training) p.weights = Dtype::bf16;
      if (purpose != Purpose::inference) p.operands = ops::Operands::bf16;
    }
  } else if (dtype == "auto" && purpose != Purpose::training && is_narrow(stored)) {
    p.weights = stored;
  } else if (dtype != "auto" && dtype != "fp32") {
    throw setting_error("dtype",
                        fmt::format("expected auto, fp32, bf16, fp8 or fp64, found '{}'", dtype));
  }
  return p;
}

Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored, const ParameterFormats& formats) {
  return choose_precision(dtype, backend, purpose, formats.empty() ? stored : Dtype::f32);
}

void require_fp8_weights(std::string_view dtype, std::optional<ops::WeightFormat> quantization) {
  if (dtype != "fp8" || quantization == ops::WeightFormat::fp8) return;
  throw AdvisedUsageError(
      "multiplies weights in fp8",
      {.subject = {"dtype", "fp8"}, .lead = "give", .remedies = {{{"quantize-base", "fp8"}}}});
}

void require_positions(int64_t context, const ModelConfig& config) {
  if (context <= config.max_positions) return;
  throw AdvisedUsageError(
      fmt::format("is more than the model's {} positions", config.max_positions),
      {.subject = {"context", std::to_string(context)}});
}

void draw_weights(Backend& backend, Mixtral& model, uint64_t seed) {
  nn::initialise(backend, model.parameters(), defaults::initialisation(model.config(), seed));
}

std::unique_ptr<Mixtral> open_weights(Backend& backend, const ModelSource& source,
                                      const Mixtral::Options& options, const WeightsFrom& from,
                                      const ModelSource::Note& note) {
  if (!from.random && !source.is_builtin()) {
    check_weights(source.config(), source.tensors());
    auto model = std::make_unique<Mixtral>(backend, source.config(), options);
    load_weights(backend, *model, source.tensors());
    return model;
  }
  if (!from.random && note)
    note(
        fmt::format("note: {} is a built-in configuration without weights: they are drawn from "
                    "the seed {}",
                    source.name(), from.seed));
  auto model = std::make_unique<Mixtral>(backend, source.config(), options);
  draw_weights(backend, *model, from.seed);
  return model;
}

MemoryPlan require_pass_memory(const Backend& backend, const TrainingShape& shape) {
  const auto planner = make_planning_backend(&backend);
  MemoryPlan plan = plan_training(*planner, shape);
  require_memory(*planner, shape, plan, backend.memory());
  return plan;
}

OpenedModel open_model(const ModelSource& source, const OpenOptions& options,
                       const ModelSource::Note& note) {
  return open_within(source, options, {}, note).opened;
}

PlannedModel open_within(const ModelSource& source, const OpenOptions& o,
                         std::optional<int64_t> most, const ModelSource::Note& note) {
  PlannedModel planned;
  OpenedModel& open = planned.opened;
  open.backend = make_backend(o.device, o.threads);
  open.backend->set_batch_invariant(o.batch_invariant);
  const ModelConfig& config = source.config();
  require_positions(o.context, config);
  const Purpose purpose = purpose_of(o, source);
  ParameterFormats stored;
  if (purpose != Purpose::training && !o.random_weights && !o.quantization)
    stored = source.stored_formats(*open.backend, o.dtype);
  open.precision = choose_precision(o.dtype, *open.backend,
                                    purpose == Purpose::tuning ? Purpose::training : purpose,
                                    config.dtype, stored);
  Mixtral::Options options{.weights = open.precision.weights,
                           .compute = open.precision.compute,
                           .context = o.context,
                           .trainable = purpose == Purpose::training,
                           .rope_frequencies = o.rope_frequencies,
                           .quantization = o.quantization,
                           .formats = stored,
                           .operands = open.precision.operands,
                           .cache = o.cache,
                           .fixed_weights = purpose == Purpose::inference};
  require_fp8_weights(o.dtype, o.quantization);
  std::optional<AdapterFile> adapter = source.load_adapter();
  open.arena = std::make_unique<Arena>(*open.backend);
  int64_t activations = 0;
  std::optional<Draft> draft;
  std::optional<ExpertStreaming> streaming;
  if (o.pass) {
    TrainingShape shape = *o.pass;
    shape.config = config;
    shape.options = options;
    shape.adapter = adapter;
    activations = require_pass_memory(*open.backend, shape).arena();
  } else {
    Backend::MemoryInfo memory = open.backend->memory();
    if (most) memory.available = std::min(memory.available, *most);
    InferenceShape shape = inference_shape(config, options, o);
    if (!o.draft_model.empty()) draft = find_draft(o, source, shape, *open.backend, note);
    const int64_t drafting = draft ? draft->bytes(*open.backend) : 0;
    memory.available = std::max<int64_t>(0, memory.available - drafting);
    const ExpertSource experts{.model = source, .drawn = o.random_weights || source.is_builtin()};
    shape = fit_lone_chunk(*make_planning_backend(open.backend.get()), shape, memory);
    open.chunk = shape.chunk, open.lone_chunk = shape.lone_chunk;
    const bool gpu = open.backend->kind() == DeviceKind::gpu;
    if (o.random_weights && o.expert_memory && !gpu)
      throw setting_error("expert-memory", "weights that are drawn cannot be read from files");
    // A budget is kept by refusing: to stream experts instead is for who asks for it.
    if ((o.random_weights && !gpu) || (most && !o.expert_memory))
      require_memory(*make_planning_backend(open.backend.get()), shape, memory);
    else
      streaming = plan_streaming(*open.backend, experts, shape, memory, o.expert_memory);
    if (streaming) {
      options.stream_experts = shape.options.stream_experts = true;
      shape.expert_memory = streaming->memory;
      if (note) note("note: " + describe(*streaming));
      if (!streaming->in_host) drop_cached_files(source.tensors());
    }
    planned.bytes =
        plan_inference(*make_planning_backend(open.backend.get()), shape).total() + drafting;
  }
  const WeightsFrom weights{.random = o.random_weights, .seed = o.seed};
  open.model = open_weights(*open.backend, source, options, weights, note);
  if (streaming) {
    OpenedExperts experts = open_experts(*open.backend, *open.model, *streaming, source, weights);
    open.host_experts = std::move(experts.host);
    open.experts = std::move(experts.cache);
  }
  open.draft_tokens = o.draft_tokens;
  if (draft)
    open.draft_model =
        open_weights(*open.backend, draft->source, draft->shape.options, weights, note);
  if (purpose == Purpose::inference)
    open.adapters = std::make_unique<AdapterSet>(*open.backend, *open.model, adapter);
  else if (adapter)
    open.adapter = std::make_unique<Adapter>(*open.backend, *open.model, std::move(*adapter),
                                             Adapter::Options{.trainable = true});
  if (activations > 0) open.arena->reserve(activations);
  open.ctx = std::make_unique<Context>(*open.backend, *open.arena, open.precision.compute);
  open.ctx->set_operands(open.precision.operands);
  return planned;
}

}  // namespace mixtral
