// Every backend against the reference, over the table of operations. Run some ops with a filter:
//   ops_parity_test --gtest_filter='*GroupedMatmul_*'
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "backends/registry.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Parameter {
  OpCase op;
  Dtype dtype;
};

void PrintTo(const Parameter& parameter, std::ostream* out) { *out << parameter.op.name; }

std::string name_of(const testing::TestParamInfo<Parameter>& info) {
  return fmt::format("{}_{}", info.param.op.name, to_string(info.param.dtype));
}

/// Each case in those of its types that are among `dtypes`.
std::vector<Parameter> parameters(const std::vector<Dtype>& dtypes) {
  std::vector<Parameter> all;
  for (const auto& op : op_cases())
    for (Dtype dtype : op.dtypes)
      if (!op.benchmark && std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end())
        all.push_back({op, dtype});
  return all;
}

/// Builds a case for the reference and for `device`, runs both and compares them.
void compare(const Parameter& parameter, Backend& backend) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", seed));
  const auto reference = make_backend("ref");
  Rig expected(*reference, parameter.dtype, seed);
  parameter.op.build(expected);
  Rig tested(backend, expected);
  parameter.op.build(tested);
  expected.execute();
  tested.execute();
  EXPECT_EQ(difference(expected, tested), "");
}

Backend& cpu() {
  static const std::unique_ptr<Backend> backend = make_backend("cpu", 2);
  return *backend;
}

class Parity : public testing::TestWithParam<Parameter> {};
class ParityOrRefusal : public testing::TestWithParam<Parameter> {};
class ParityOnGpu : public testing::TestWithParam<Parameter> {};

TEST_P(Parity, EqualsReference) { compare(GetParam(), cpu()); }

// The CPU computes with f32 activations. Given others, an op may say so, or compute them rightly.
TEST_P(ParityOrRefusal, EqualsReferenceOrRefusesTheType) {
  try {
    compare(GetParam(), cpu());
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(std::string(to_string(GetParam().dtype))));
  }
}

TEST_P(ParityOnGpu, EqualsReference) {
  static const std::unique_ptr<Backend> backend = make_backend("auto");
  if (backend->name() == "cpu") GTEST_SKIP() << "no GPU, or built without CUDA";
  if (!backend->has_format(GetParam().op.format)) GTEST_SKIP() << "not a format of this backend";
  compare(GetParam(), *backend);
}

INSTANTIATE_TEST_SUITE_P(Cpu, Parity, testing::ValuesIn(parameters({Dtype::f32})), name_of);
INSTANTIATE_TEST_SUITE_P(Cpu, ParityOrRefusal,
                         testing::ValuesIn(parameters({Dtype::f64, Dtype::bf16})), name_of);
#ifdef MIXTRAL_CUDA
INSTANTIATE_TEST_SUITE_P(Gpu, ParityOnGpu, testing::ValuesIn(parameters({Dtype::f32, Dtype::bf16})),
                         name_of);
#else
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ParityOnGpu);
#endif

}  // namespace
}  // namespace mixtral::test
