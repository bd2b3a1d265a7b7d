#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace mixtral {

/// Where memory comes from: a backend, or `host_memory()`.
class Allocator {
 public:
  virtual ~Allocator() = default;
  /// At least `bytes` bytes, aligned to 256; contents undefined. Throws Error when there is none.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void free(void* data, int64_t bytes) noexcept = 0;
};

/// Ordinary memory, in pages that are only backed once they are written to.
Allocator& host_memory();

/// Owns a block of memory. Move-only. The allocator must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Allocator& allocator, int64_t bytes)
      : allocator_(&allocator), data_(allocator.allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() {
    if (data_) allocator_->free(data_, bytes_);
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool empty() const { return data_ == nullptr; }
  /// The start of the buffer as a tensor, which must fit.
  Tensor tensor(Shape shape, Dtype dtype) const {
    CHECK(shape.numel() * size_of(dtype) <= bytes_);
    return {data_, shape, dtype};
  }

 private:
  Allocator* allocator_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// A bump allocator for activations: tensors are taken in order and given back all at once, to a
/// mark. It grows by whole blocks while a computation is run for the first time; `reset` then joins
/// them into one, so that later runs of the same computation see the same addresses.
class Arena {
 public:
  struct Mark {
    size_t block = 0;
    int64_t offset = 0;
  };

  explicit Arena(Allocator& allocator) : allocator_(&allocator) {}

  /// An uninitialised tensor, aligned to 256 bytes, valid until rewind to an earlier mark.
  Tensor allocate(Shape shape, Dtype dtype);
  Mark mark() const { return {current_, offset_}; }
  void rewind(Mark mark) {
    current_ = mark.block;
    offset_ = mark.offset;
  }
  /// Gives everything back, and joins the blocks if there are several.
  void reset();
  /// Gives everything back, and holds at least `bytes` in one block: no growth up to there.
  void reserve(int64_t bytes);

  /// Counts the changes of the blocks. While it stays, the same allocations after a reset get the
  /// same addresses, and addresses taken before are still this arena's.
  uint64_t version() const { return version_; }
  int64_t used() const;                   // bytes in use now
  int64_t peak() const { return peak_; }  // the most that were in use since construction
  int64_t reserved() const;               // bytes held from the allocator

 private:
  void add_block(int64_t bytes);

  Allocator* allocator_;
  std::vector<Buffer> blocks_;
  size_t current_ = 0;
  int64_t offset_ = 0;
  int64_t peak_ = 0;
  uint64_t version_ = 0;
};

/// Rewinds an arena to where it stood, on leaving the scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace mixtral
