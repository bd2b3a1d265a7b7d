#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/planning.h"
#include "ops/backend.h"

namespace mixtral {

/// Opens a device by name: "cpu", "ref", "cuda" or "cuda:1", or "auto" (the first GPU if this build
/// has the CUDA backend and the machine one, else "cpu"). "cpu:avx2" limits the whole process's
/// kernels to an instruction set (cpu::limit_instructions). `threads` is the number of CPU threads,
/// 0 for one a core. Throws UsageError for an unknown name, or one that this build lacks.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads = 0);

/// The names that make_backend accepts in this build, for help texts.
std::vector<std::string> backend_names();

/// A backend that computes nothing and whose memory is never touched: running a step on it measures
/// exactly what the step would allocate. It answers as `like`, which must outlive it; without, as a
/// processor with this machine's memory.
std::unique_ptr<PlanningBackend> make_planning_backend(const Backend* like = nullptr);

/// The same for a GPU with `bytes` of memory, which need not be here.
std::unique_ptr<PlanningBackend> make_planning_gpu(int64_t bytes);

}  // namespace mixtral
