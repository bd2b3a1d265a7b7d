#include "backends/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ops/context.h"

namespace mixtral {
namespace {

TEST(Registry, MakesEveryHostBackend) {
  EXPECT_EQ(make_backend("ref")->name(), "ref");
  EXPECT_EQ(make_backend("cpu", 1)->name(), "cpu");
  EXPECT_NE(make_backend("auto"), nullptr);
}

TEST(Registry, RefusesUnknownDevicesAndNamesTheKnown) {
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    try {
      make_backend(name);
      FAIL() << name;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("--device"),
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
  EXPECT_EQ(backend->memory().total, like->memory().total);
}

}  // namespace
}  // namespace mixtral
