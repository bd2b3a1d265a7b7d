#include "convert/quantize.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/advice.h"
#include "convert/type_plan.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

constexpr int kTries = 8;
// Of the noise that a bound on perplexity would allow if the two were proportional: this share is
// aimed at, and no step is smaller or larger than these.
constexpr double kAim = 0.9, kLeastStep = 0.2, kMostStep = 0.8;

}  // namespace

Quality measure_written(Backend& backend, const ModelSource& source,
                        const std::filesystem::path& written, const HostBatch& text) {
  const ModelSource target = ModelSource::resolve({.model = written.string()});
  return measure_quality(backend, {source.tensors(), source.config()},
                         {target.tensors(), target.config()}, text);
}

Quantized quantize_within(Backend& backend, const ModelSource& source, ConvertOptions options,
                          const Budget& budget, const Sensitivity& sensitivity,
                          const HostBatch& text, const ConvertProgress& progress,
                          const RetryNote& note) {
  TypePlanner planner(planned_tensors(source, options), sensitivity);
  if (planner.bytes() > budget.bytes)
    throw AdvisedError(
        fmt::format("‹target-size {}›: the smallest types need {}; allow that, or quantize to a "
                    "format with smaller ones",
                    format_bytes(static_cast<int64_t>(budget.bytes)),
                    format_bytes(static_cast<int64_t>(planner.bytes()))));
  if (!budget.most_increase) planner.fill(budget.bytes);
  for (int attempt = 1;; ++attempt) {
    options.plan = planner.types();
    Quantized result{.receipt = convert_model(source, options, progress), .quality = {}};
    result.quality = measure_written(backend, source, options.out, text);
    if (!budget.most_increase || result.quality.increase() <= *budget.most_increase) return result;
    const uint64_t before = planner.bytes();
    const double step = kAim * *budget.most_increase / result.quality.increase();
    planner.quieten(planner.noise() * std::clamp(step, kLeastStep, kMostStep), budget.bytes);
    if (planner.bytes() == before || attempt == kTries) {
      result.within = false;
      return result;
    }
    note(fmt::format("perplexity {:+.2f}% with {} of weights, too much; tried again with {}",
                     100 * result.quality.increase(), format_bytes(static_cast<int64_t>(before)),
                     format_bytes(static_cast<int64_t>(planner.bytes()))));
    options.overwrite = true;  // what was written just now
  }
}

}  // namespace mixtral
