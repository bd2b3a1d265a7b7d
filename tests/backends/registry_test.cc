#include "backends/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "ops/context.h"

namespace mixtral {
namespace {

TEST(Registry, MakesEveryHostBackend) {
  EXPECT_EQ(make_backend("ref")->name(), "ref");
  EXPECT_EQ(make_backend("ref")->kind(), DeviceKind::reference);
  EXPECT_EQ(make_backend("cpu", 1)->name(), "cpu");
  EXPECT_EQ(make_backend("cpu", 1)->kind(), DeviceKind::cpu);
  EXPECT_NE(make_backend("auto"), nullptr);
}

TEST(Registry, RefusesUnknownDevicesAndNamesTheKnown) {
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    try {
      make_backend(name);
      FAIL() << name;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("device"),
                                               testing::HasSubstr("auto, cpu, ref")));
    }
  }
}

#ifndef MIXTRAL_CUDA
TEST(Registry, SaysWhenItWasBuiltWithoutCuda) {
  EXPECT_THROW(make_backend("cuda"), UsageError);
  EXPECT_THROW(make_backend("cuda:1"), UsageError);
}
#endif

TEST(Planning, HoldsTerabytesAndCountsThem) {
  const auto backend = make_planning_backend();
  constexpr int64_t kTerabyte = int64_t{1} << 40;
  {
    const Buffer first(*backend, 3 * kTerabyte), second(*backend, 2 * kTerabyte);
    EXPECT_EQ(backend->allocated(), 5 * kTerabyte);
  }
  const Buffer third(*backend, kTerabyte);
  EXPECT_EQ(backend->allocated(), kTerabyte);
  EXPECT_EQ(backend->peak(), 5 * kTerabyte);
}

TEST(Planning, RunsOpsWithoutTouchingMemory) {
  const auto backend = make_planning_backend();
  Arena arena(*backend);
  Context context(*backend, arena, Dtype::f32);
  const Tensor x = context.allocate({int64_t{1} << 20, 4096}), y = context.allocate(x.shape());
  context.run(ops::Convert{x, y});
  context.run(ops::Fill{y, 1});
  backend->record([&] { context.run(ops::Fill{x, 1}); })->replay();
  std::vector<float> host(16, 5);
  backend->download(y.view(0, {16}), Tensor(std::span(host)));
  EXPECT_THAT(host, testing::Each(0));
  EXPECT_GE(arena.peak(), 2 * x.bytes());
}

TEST(Planning, AnswersForTheDeviceItStandsFor) {
  const auto like = make_backend("ref");
  const auto backend = make_planning_backend(like.get());
  EXPECT_EQ(backend->name(), "ref");
  EXPECT_EQ(backend->kind(), DeviceKind::reference);
  EXPECT_EQ(backend->memory().total, like->memory().total);
}

TEST(Planning, KnowsAGpusScratchMemoryWithoutTheGpu) {
  const auto gpu = make_planning_gpu(int64_t{80} << 30), host = make_planning_backend();
  EXPECT_EQ(gpu->kind(), DeviceKind::gpu);
  const auto attention = [](Dtype dtype, int64_t tokens) {
    ops::AttentionBackward op;
    op.heads = {.query = 8, .kv = 2, .width = 64};
    op.qkv = Tensor(nullptr, {tokens, op.heads.columns()}, dtype);
    op.sequence_starts = Tensor(nullptr, {5}, Dtype::i32);
    op.longest = 512;
    return op;
  };
  // 4 sequences, 8 heads: a score of 2 bytes for every pair of 512 positions.
  EXPECT_EQ(gpu->scratch_bytes(attention(Dtype::bf16, 4 * 512)), int64_t{4} * 8 * 512 * 512 * 2);
  EXPECT_EQ(gpu->scratch_bytes(attention(Dtype::bf16, 4 * 512 - 1)), 0) << "of several lengths";
  EXPECT_EQ(gpu->scratch_bytes(attention(Dtype::f32, 4 * 512)), 0);
  EXPECT_EQ(host->scratch_bytes(attention(Dtype::bf16, 4 * 512)), 0);
}

/// The result of products and additions that depend on each other.
std::vector<float> computed(Backend& backend) {
  constexpr int64_t kRows = 24, kWidth = 40;
  const Buffer buffer(backend, (2 * kRows + kWidth) * kWidth * 4);
  const Tensor all = buffer.tensor({2 * kRows + kWidth, kWidth}, Dtype::f32);
  const Tensor x = all.slice(0, kRows), y = all.slice(kRows, 2 * kRows);
  const Tensor weight = all.slice(2 * kRows, 2 * kRows + kWidth);
  backend.run(ops::RandomNormal{.x = x, .seed = 1});
  backend.run(ops::RandomNormal{.x = weight, .seed = 2, .deviation = 0.1});
  for (int step = 0; step < 30; ++step) {
    backend.run(ops::GroupedMatmul{.x = x, .weight = weight, .offsets = {}, .y = y});
    backend.run(ops::AddScaled{.x = y, .y = x, .scale = 0.1});
  }
  std::vector<float> result(static_cast<size_t>(x.numel()));
  backend.download(x, Tensor(result.data(), x.shape(), Dtype::f32));
  return result;
}

TEST(Backends, SeveralInOneProcessWorkInThreadsOfTheirOwn) {
  for (const char* device : {"cpu", "ref"}) {
    const auto expected = computed(*make_backend(device, 2));
    std::vector<std::unique_ptr<Backend>> backends;
    for (int i = 0; i < 3; ++i) backends.push_back(make_backend(device, 2));
    std::vector<std::vector<float>> results(backends.size());
    std::vector<std::thread> threads;  // none of which opened the backend it uses
    for (size_t i = 0; i < backends.size(); ++i)
      threads.emplace_back([&, i] { results[i] = computed(*backends[i]); });
    for (std::thread& thread : threads) thread.join();
    EXPECT_THAT(results, testing::Each(expected)) << device;
  }
}

}  // namespace
}  // namespace mixtral
