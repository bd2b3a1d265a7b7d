#include "backends/planning.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda_plan/attention_part.h"
#include "ref/backend.h"

namespace mixtral {
namespace {

size_t mapped_size(int64_t bytes) { return static_cast<size_t>(std::max<int64_t>(bytes, 1)); }

}  // namespace

PlanningBackend::PlanningBackend(const Backend* like) : like_(like) {
  if (like)
    device_ = {.name = like->name(),
               .kind = like->kind(),
               .memory = like->memory(),
               .slice_elements = like->slice_elements(),
               .page_tokens = like->page_tokens(),
               .prompt_tokens = like->prompt_tokens(),
               .lone_prompt_tokens = like->lone_prompt_tokens()};
  else
    device_.memory = ref::RefBackend().memory();
}

PlanningBackend::PlanningBackend(Device device) : device_(std::move(device)) {}

int64_t PlanningBackend::scratch_bytes(const ops::AttentionBackward& op) const {
  return kind() == DeviceKind::gpu ? cuda_plan::scratch_bytes(op) : 0;
}

void* PlanningBackend::allocate(int64_t bytes) {
  void* data = ::mmap(nullptr, mapped_size(bytes), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    throw Error(
        fmt::format("a plan of {:.1f} GiB more does not fit the memory that this process may "
                    "address; raise `ulimit -v` where one is set, or take a smaller batch, context "
                    "or model",
                    static_cast<double>(bytes) / 0x1p30));
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  return data;
}

void PlanningBackend::free(void* data, int64_t bytes) noexcept {
  ::munmap(data, mapped_size(bytes));
  allocated_ -= bytes;
}

void PlanningBackend::download(const Tensor&, const Tensor& host) {
  if (host.numel() > 0) std::memset(host.data(), 0, static_cast<size_t>(host.bytes()));
}

}  // namespace mixtral
