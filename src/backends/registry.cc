#include "backends/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/advice.h"
#include "cpu/backend.h"
#include "cpu/instruction_sets.h"
#include "cuda_plan/figures.h"
#include "ref/backend.h"
#ifdef MIXTRAL_CUDA
#include "cuda/backend.h"
#endif

namespace mixtral {
namespace {

/// GPUs that this build can use and this machine has.
int gpu_count() {
#ifdef MIXTRAL_CUDA
  return cuda::device_count();
#else
  return 0;
#endif
}

std::unique_ptr<Backend> make_cuda([[maybe_unused]] int index) {
#ifdef MIXTRAL_CUDA
  return cuda::make_backend(index);
#else
  throw AdvisedUsageError(
      "‹device cuda›: this program was built without CUDA; choose cpu, or build with "
      "-DMIXTRAL_CUDA=ON");
#endif
}

/// N of "cuda:N", 0 for "cuda", -1 for anything else.
int gpu_index(std::string_view device) {
  if (device == "cuda") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  if (!device.starts_with(kPrefix)) return -1;
  const char* const begin = device.data() + kPrefix.size();
  const char* const end = device.data() + device.size();
  int index = -1;
  const auto [stop, error] = std::from_chars(begin, end, index);
  return error == std::errc() && stop == end ? index : -1;
}

}  // namespace

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device == "auto") return gpu_count() > 0 ? make_cuda(0) : make_backend("cpu", threads);
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads);
  constexpr std::string_view kLimited = "cpu:";
  if (device.starts_with(kLimited)) {
    cpu::limit_instructions(std::string_view(device).substr(kLimited.size()));
    return std::make_unique<cpu::CpuBackend>(threads);
  }
  if (device == "ref") return std::make_unique<ref::RefBackend>();
  if (const int index = gpu_index(device); index >= 0) return make_cuda(index);
  throw AdvisedUsageError(fmt::format("‹device {}›: no such device; expected {}", device,
                                      fmt::join(backend_names(), ", ")));
}

std::vector<std::string> backend_names() {
  std::vector<std::string> names{"auto", "cpu", "ref"};
#ifdef MIXTRAL_CUDA
  names.insert(names.end(), {"cuda", "cuda:N"});
#endif
  return names;
}

std::unique_ptr<PlanningBackend> make_planning_backend(const Backend* like) {
  return std::make_unique<PlanningBackend>(like);
}

std::unique_ptr<PlanningBackend> make_planning_gpu(int64_t bytes) {
  constexpr int64_t kOpened = cuda_plan::kOpenedBytes;
  return std::make_unique<PlanningBackend>(
      PlanningBackend::Device{.name = "cuda",
                              .kind = DeviceKind::gpu,
                              .memory = {.total = bytes,
                                         .available = std::max<int64_t>(bytes - kOpened, 0),
                                         .opened = kOpened},
                              .slice_elements = cuda_plan::kSliceElements,
                              .page_tokens = cuda_plan::kPageTokens,
                              .prompt_tokens = cuda_plan::kPromptTokens,
                              .lone_prompt_tokens = cuda_plan::kLonePromptTokens});
}

}  // namespace mixtral
