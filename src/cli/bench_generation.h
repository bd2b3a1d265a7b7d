#pragma once

#include "cli/bench_options.h"
#include "cli/bench_report.h"

namespace mixtral {

/// bench prefill and bench decode.
void bench_generation(const BenchOptions& o, const ModelConfig& config, Backend& backend,
                      Report& report);

}  // namespace mixtral
