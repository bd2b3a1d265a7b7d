#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "cuda/backend.h"
#include "tests/support/rig.h"

namespace mixtral::test {

/// Tests on the first GPU, for each of some cases; skipped where there is none.
template <class Case>
class GpuTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU that the CUDA backend can use";
  }
  static Backend& gpu() {
    static const std::unique_ptr<Backend> backend = cuda::make_backend(0);
    return *backend;
  }
};

/// Expects the same bits of an operation when it is run again, recorded and replayed.
inline void expect_same_bits_again(Backend& gpu, Dtype dtype,
                                   const std::function<void(Rig&)>& build) {
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", test_seed()));
  Rig first(gpu, dtype, test_seed());
  build(first);
  first.execute();
  Rig again(gpu, first);
  build(again);
  again.execute();
  EXPECT_EQ(bit_difference(first, again), "") << "run again";
  again.restore();
  const auto program = gpu.record([&] { again.issue(); });
  gpu.synchronize();
  EXPECT_EQ(bit_difference(first, again), "") << "recorded";
  again.restore();
  program->replay();
  gpu.synchronize();
  EXPECT_EQ(bit_difference(first, again), "") << "replayed";
}

}  // namespace mixtral::test
