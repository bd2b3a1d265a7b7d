#include "tensor/buffer.h"

#include <gtest/gtest.h>

#include <cstring>

namespace mixtral {
namespace {

// Counts what is held, and fails on request.
class CountingAllocator : public Allocator {
 public:
  void* allocate(int64_t bytes) override {
    void* data = host_memory().allocate(bytes);
    held += bytes;
    ++blocks;
    return data;
  }
  void free(void* data, int64_t bytes) noexcept override {
    held -= bytes;
    --blocks;
    host_memory().free(data, bytes);
  }
  int64_t held = 0;
  int blocks = 0;
};

TEST(Buffer, OwnsAndMoves) {
  CountingAllocator allocator;
  {
    Buffer a(allocator, 100);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 256, 0u);
    Buffer b(std::move(a));
    EXPECT_EQ(allocator.held, 100);
    Buffer c;
    EXPECT_TRUE(c.empty());
    c = std::move(b);
    EXPECT_EQ(c.bytes(), 100);
    EXPECT_EQ(allocator.held, 100);
    EXPECT_EQ(c.tensor({5, 5}, Dtype::f32).numel(), 25);
    EXPECT_THROW(c.tensor({26}, Dtype::f32), InternalError);
    c = Buffer(allocator, 50);
  }
  EXPECT_EQ(allocator.held, 0);
  EXPECT_EQ(allocator.blocks, 0);
}

TEST(Arena, TensorsAreAlignedAndApart) {
  Arena arena(host_memory());
  std::vector<Tensor> tensors;
  for (const int64_t n : {0, 1, 63, 64, 65, 1000})
    for (const Dtype dtype : {Dtype::u8, Dtype::f32, Dtype::f64})
      tensors.push_back(arena.allocate({n}, dtype));
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensors[i].data()) % 256, 0u);
    std::memset(tensors[i].data(), static_cast<int>(i + 1),
                static_cast<size_t>(tensors[i].bytes()));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(tensors[i].data());
    for (int64_t j = 0; j < tensors[i].bytes(); ++j) ASSERT_EQ(bytes[j], i + 1);
  }
}

TEST(Arena, RewindsToAMark) {
  Arena arena(host_memory());
  arena.allocate({10}, Dtype::f32);
  const int64_t used = arena.used();
  const auto mark = arena.mark();
  void* first = arena.allocate({100}, Dtype::f32).data();
  arena.allocate({int64_t{1} << 22}, Dtype::f32);  // in a block of its own
  EXPECT_GT(arena.used(), used + (int64_t{1} << 24) - 1);
  arena.rewind(mark);
  EXPECT_EQ(arena.used(), used);
  EXPECT_EQ(arena.allocate({100}, Dtype::f32).data(), first);
  {
    const ArenaScope scope(arena);
    arena.allocate({5000}, Dtype::f64);
  }
  EXPECT_EQ(arena.allocate({1}, Dtype::u8).data(), static_cast<char*>(first) + 512);
}

// The second run of a computation, and every later one, has one block and the same addresses.
TEST(Arena, ResetSettlesTheAddresses) {
  CountingAllocator allocator;
  Arena arena(allocator);
  const auto run = [&] {
    std::vector<void*> addresses;
    for (int i = 0; i < 40; ++i) {
      const ArenaScope scope(arena);
      addresses.push_back(arena.allocate({(i % 7 + 1) * 100000}, Dtype::f32).data());
      addresses.push_back(arena.allocate({i * 50000}, Dtype::f32).data());
    }
    for (int i = 0; i < 10; ++i)
      addresses.push_back(arena.allocate({(i + 1) * 123457}, Dtype::f32).data());
    return addresses;
  };
  run();
  EXPECT_GT(allocator.blocks, 1);
  const int64_t peak = arena.peak();
  const uint64_t grown = arena.version();
  arena.reset();
  EXPECT_NE(arena.version(), grown);
  const uint64_t joined = arena.version();
  EXPECT_EQ(allocator.blocks, 1);
  EXPECT_EQ(arena.used(), 0);
  const auto second = run();
  EXPECT_EQ(allocator.blocks, 1);
  for (int round = 0; round < 3; ++round) {
    arena.reset();
    EXPECT_EQ(run(), second);
  }
  EXPECT_EQ(arena.version(), joined);
  EXPECT_EQ(arena.peak(), peak);
  EXPECT_EQ(arena.reserved(), allocator.held);
  arena.reserve(peak + 1);
  EXPECT_NE(arena.version(), joined);
}

TEST(Arena, AnEmptyOneCanBeResetAndMarked) {
  Arena arena(host_memory());
  const auto mark = arena.mark();
  arena.reset();
  EXPECT_EQ(arena.reserved(), 0);
  void* first = arena.allocate({3}, Dtype::f32).data();
  arena.rewind(mark);
  EXPECT_EQ(arena.allocate({3}, Dtype::f32).data(), first);
}

TEST(HostMemory, SaysWhenThereIsNone) {
  EXPECT_THROW(host_memory().allocate(int64_t{1} << 60), Error);
}

}  // namespace
}  // namespace mixtral
