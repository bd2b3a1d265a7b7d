#include "open/expert_streaming.h"

#include <fmt/format.h>

#include <algorithm>

#include "backends/registry.h"
#include "base/advice.h"
#include "train/defaults.h"

namespace mixtral {
namespace {

/// Kept free beside the plan, where the program itself decides how much it takes.
int64_t margin(int64_t limit) { return limit / 32; }

/// Whether experts are copied from the host's memory; else they are read from files.
bool copies_experts(const Backend& backend) { return backend.kind() == DeviceKind::gpu; }

bool can_stream(const Backend& backend, const ExpertSource& source, const InferenceShape& shape) {
  if (shape.options.trainable) return false;
  if (copies_experts(backend)) return source.drawn || source.model.has_weights();
  return backend.kind() == DeviceKind::cpu && source.model.has_weights() && !source.drawn &&
         !shape.options.quantization;
}

/// Why experts of these files cannot be read as the device needs them; empty where they can.
std::string why_not(const Backend& backend, Mixtral& model, const ExpertSource& source) {
  return copies_experts(backend) ? std::string() : why_not_streamed(model, source.model.tensors());
}

/// Bytes that may be taken of the host's memory: some is left for the program and for files.
int64_t host_limit(const ExpertSource& source) {
  const int64_t free = source.host_memory.value_or(make_planning_backend()->memory().available);
  return free - margin(free);
}

InferenceShape streamed(InferenceShape shape, int64_t expert_memory) {
  shape.options.stream_experts = true;
  shape.expert_memory = expert_memory;
  return shape;
}

/// The streamed model of a plan, to ask what its experts take.
Mixtral planned_model(Backend& planner, const InferenceShape& shape) {
  Mixtral::Options options = shape.options;
  options.stream_experts = options.planned = true;
  options.context = shape.context;
  return {planner, shape.config, options};
}

double share(int64_t part, int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 0;
}

double reading_rate(const ExpertCache::Figures& f) {
  return f.reading > 0 ? static_cast<double>(f.bytes_read) / f.reading : 0;
}

/// Tokens a second, were nothing done but reading at this rate.
double reading_bound(const ExpertCache::Figures& f, double tokens) {
  return f.reading > 0 ? tokens / f.reading : 0;
}

}  // namespace

std::optional<ExpertStreaming> find_streaming(const Backend& backend, const ExpertSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory) {
  const auto planner = make_planning_backend(&backend);
  const int64_t limit = memory_limit(memory), whole = plan_inference(*planner, shape).total();
  if (whole <= limit || !can_stream(backend, source, shape)) return std::nullopt;
  Mixtral model = planned_model(*planner, shape);
  if (!why_not(backend, model, source).empty()) return std::nullopt;
  const ExpertSizes sizes = expert_sizes(model);
  const bool in_host = copies_experts(backend);
  if (in_host && sizes.all_bytes() > host_limit(source)) return std::nullopt;
  const int64_t room = limit - margin(limit) - plan_inference(*planner, streamed(shape, 0)).total();
  const int64_t used = sizes.used_bytes(std::max<int64_t>(0, room));
  if (used < sizes.least_bytes()) return std::nullopt;
  return ExpertStreaming{.memory = used, .sizes = sizes, .whole = whole, .in_host = in_host};
}

std::optional<ExpertStreaming> plan_streaming(const Backend& backend, const ExpertSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory,
                                              std::optional<int64_t> asked) {
  const auto planner = make_planning_backend(&backend);
  const int64_t whole = plan_inference(*planner, shape).total();
  if (!asked) {
    if (whole <= memory_limit(memory)) return std::nullopt;
    auto found = find_streaming(backend, source, shape, memory);
    if (!found) require_memory(*planner, shape, memory);
    return found;
  }
  if (!can_stream(backend, source, shape))
    throw setting_error(
        "expert-memory",
        "a CPU reads experts from a model's files, in the formats that they have there, and a GPU "
        "copies them from the host's memory; leave it out");
  Mixtral model = planned_model(*planner, shape);
  if (const std::string reason = why_not(backend, model, source); !reason.empty())
    throw setting_error(
        "expert-memory",
        fmt::format("{}: its experts cannot be read one by one: {}", source.model.name(), reason));
  const ExpertSizes sizes = expert_sizes(model);
  if (*asked < sizes.least_bytes())
    throw setting_error(
        "expert-memory",
        fmt::format("expected at least {}, which one of the {} experts of each "
                    "layer takes, found {}",
                    format_bytes(sizes.least_bytes()), sizes.experts, format_bytes(*asked)));
  const bool in_host = copies_experts(backend);
  if (const int64_t limit = in_host ? host_limit(source) : 0; in_host && sizes.all_bytes() > limit)
    throw setting_error(
        "expert-memory",
        fmt::format(
            "all experts stand in the host's memory beside it, and take {} there, of {} "
            "that are free; give ‹quantize-base nf4›, a smaller model, or a machine with more "
            "memory",
            format_bytes(sizes.all_bytes()), format_bytes(std::max<int64_t>(0, limit))));
  const ExpertStreaming result{
      .memory = sizes.used_bytes(*asked), .sizes = sizes, .whole = whole, .in_host = in_host};
  require_memory(*planner, streamed(shape, result.memory), memory);
  return result;
}

OpenedExperts open_experts(Backend& backend, Mixtral& model, const ExpertStreaming& streaming,
                           const ModelSource& source, const WeightsFrom& from) {
  OpenedExperts opened;
  const ExpertCache::Options options{.memory = streaming.memory};
  if (!streaming.in_host) {
    opened.cache = std::make_unique<ExpertCache>(backend, model, source.tensors(), options);
    return opened;
  }
  opened.host = std::make_unique<HostExperts>(backend, model);
  if (from.random || source.is_builtin())
    opened.host->draw(model, defaults::initialisation(model.config(), from.seed));
  else
    opened.host->load(model, source.tensors());
  opened.cache = std::make_unique<ExpertCache>(backend, model, *opened.host, options);
  return opened;
}

std::string describe(const ExpertStreaming& s) {
  const int64_t places = s.memory / s.sizes.expert_bytes(), all = s.sizes.layers * s.sizes.experts;
  const std::string part = fmt::format("{} of {}", places, all);
  if (s.in_host)
    return fmt::format(
        "experts stand in the host's memory ({}) and are copied to the device as they are needed: "
        "{} are there at once ({}); with all of them, the plan is {}",
        format_bytes(s.sizes.all_bytes()), part, format_bytes(s.memory), format_bytes(s.whole));
  return fmt::format(
      "experts are read from the disk as they are needed: {} are in memory at once ({} of {}); "
      "with all of them, the plan is {}",
      part, format_bytes(s.memory), format_bytes(s.sizes.all_bytes()), format_bytes(s.whole));
}

std::string describe(const ExpertCache::Figures& f, double tokens) {
  std::string text =
      fmt::format("experts: {:.0f}% of {} uses found in memory, {:.0f}% read ahead",
                  100 * share(f.found, f.needed), f.needed, 100 * share(f.foretold, f.needed));
  if (f.expected > 0)
    text += fmt::format(", {:.0f}% of guesses right ({:.0f}% of uses repeat the step before)",
                        100 * share(f.right, f.expected), 100 * share(f.repeated, f.needed));
  text += fmt::format("; {:.2f} GB read", static_cast<double>(f.bytes_read) * 1e-9);
  if (f.reading > 0)
    text += fmt::format(" at {:.2f} GB/s, which alone allows {:.2f} tok/s; {:.1f} s of waiting",
                        reading_rate(f) * 1e-9, reading_bound(f, tokens), f.waiting);
  return text;
}

}  // namespace mixtral
