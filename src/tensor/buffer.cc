#include "tensor/buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

namespace mixtral {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kLeastBlock = int64_t{1} << 22;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

class HostMemory : public Allocator {
 public:
  void* allocate(int64_t bytes) override {
    void* data = ::mmap(nullptr, static_cast<size_t>(std::max<int64_t>(bytes, 1)),
                        PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
      throw Error(fmt::format("out of memory: {} bytes were asked for", bytes));
    // Large pages: fewer TLB misses in the weight streams of decoding.
    if (bytes >= int64_t{1} << 21) ::madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
    return data;
  }
  void free(void* data, int64_t bytes) noexcept override {
    ::munmap(data, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  }
};

}  // namespace

Allocator& host_memory() {
  static HostMemory& memory = *new HostMemory;  // never destroyed: static buffers outlive the rest
  return memory;
}

void Arena::add_block(int64_t bytes) {
  ++version_;
  blocks_.emplace_back(*allocator_, bytes);
}

Tensor Arena::allocate(Shape shape, Dtype dtype) {
  const int64_t bytes = round_up(std::max<int64_t>(shape.numel() * size_of(dtype), 1), kAlignment);
  if (blocks_.empty()) add_block(std::max(bytes, kLeastBlock));
  while (offset_ + bytes > blocks_[current_].bytes()) {
    if (current_ + 1 == blocks_.size()) add_block(std::max(bytes, blocks_.back().bytes()));
    ++current_;
    offset_ = 0;
  }
  Tensor tensor(static_cast<char*>(blocks_[current_].data()) + offset_, shape, dtype);
  offset_ += bytes;
  peak_ = std::max(peak_, used());
  return tensor;
}

int64_t Arena::used() const {
  int64_t bytes = offset_;
  for (size_t i = 0; i < current_; ++i) bytes += blocks_[i].bytes();
  return bytes;
}

int64_t Arena::reserved() const {
  int64_t bytes = 0;
  for (const auto& block : blocks_) bytes += block.bytes();
  return bytes;
}

void Arena::reserve(int64_t bytes) {
  reset();
  if (!blocks_.empty() && blocks_[0].bytes() >= bytes) return;
  blocks_.clear();
  add_block(std::max(bytes, kLeastBlock));
}

void Arena::reset() {
  current_ = 0;
  offset_ = 0;
  if (blocks_.size() <= 1) return;
  const int64_t bytes = peak_;
  blocks_.clear();
  add_block(bytes);
}

}  // namespace mixtral
