// The same inputs give the same bits: with any number of threads, at any address, and for a row
// alone or among others. Run some ops with a filter: --gtest_filter='*RmsNorm*'
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "backends/registry.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

/// Backends with different numbers of threads, made once.
Backend& cpu(int threads) {
  static std::vector<std::unique_ptr<Backend>> backends;
  if (backends.empty())
    for (int count : {1, 2, 3}) backends.push_back(make_backend("cpu", count));
  return *backends[static_cast<size_t>(threads - 1)];
}

struct Parameter {
  OpCase op;
  Dtype dtype;
};

void PrintTo(const Parameter& parameter, std::ostream* out) { *out << parameter.op.name; }

/// Every case with f32 activations, which are the CPU's.
std::vector<Parameter> parameters() {
  std::vector<Parameter> all;
  for (const auto& op : op_cases())
    for (Dtype dtype : op.dtypes)
      if (!op.benchmark && dtype == Dtype::f32) all.push_back({op, dtype});
  return all;
}

class Determinism : public testing::TestWithParam<Parameter> {};

TEST_P(Determinism, SameBitsWithAnyThreadsAndAddresses) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", seed));
  const auto& [op, dtype] = GetParam();
  Rig first(cpu(1), dtype, seed);
  op.build(first);
  first.execute();
  for (int threads : {1, 2, 3}) {
    for (int64_t shift : {0, 1}) {
      SCOPED_TRACE(fmt::format("{} threads, addresses shifted by {} elements", threads, shift));
      Rig again(cpu(threads), first, shift);
      op.build(again);
      again.execute();
      EXPECT_EQ(bit_difference(first, again), "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Determinism, testing::ValuesIn(parameters()), [](const auto& each) {
  return fmt::format("{}_{}", each.param.op.name, to_string(each.param.dtype));
});

}  // namespace
}  // namespace mixtral::test
