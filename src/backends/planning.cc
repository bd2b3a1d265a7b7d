#include "backends/planning.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "ref/backend.h"

namespace mixtral {
namespace {

size_t mapped_size(int64_t bytes) { return static_cast<size_t>(std::max<int64_t>(bytes, 1)); }

}  // namespace

PlanningBackend::PlanningBackend(const Backend* like)
    : name_(like ? like->name() : "planning"),
      memory_(like ? like->memory() : ref::RefBackend().memory()),
      slice_elements_(like ? like->slice_elements() : ref::RefBackend().slice_elements()),
      page_tokens_(like ? like->page_tokens() : ref::RefBackend().page_tokens()) {}

PlanningBackend::PlanningBackend(std::string name, MemoryInfo memory, int64_t slice_elements,
                                 int64_t page_tokens)
    : name_(std::move(name)),
      memory_(memory),
      slice_elements_(slice_elements),
      page_tokens_(page_tokens) {}

void* PlanningBackend::allocate(int64_t bytes) {
  void* data = ::mmap(nullptr, mapped_size(bytes), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    throw Error(fmt::format("{} bytes are more than this machine can even address", bytes));
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
