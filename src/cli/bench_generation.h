#pragma once

#include "cli/bench_options.h"
#include "cli/bench_report.h"
#include "open/model_source.h"

namespace mixtral {

/// bench prefill and bench decode, of `source` in the shape that `config` says.
void bench_generation(const BenchOptions& o, const ModelSource& source, const ModelConfig& config,
                      Backend& backend, Report& report);

}  // namespace mixtral
