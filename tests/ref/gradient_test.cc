// Every gradient of the reference backend, in f64, against central differences.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ref/backend.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

std::vector<double> read(const Tensor& tensor) {
  return to_doubles(tensor.data(), tensor.dtype(), tensor.numel());
}

/// L = Σ cotangent · output, after running the forward passes.
double loss(const Rig& rig) {
  rig.run_forward();
  double sum = 0;
  for (const auto& [output, cotangent] : rig.losses()) {
    const auto values = read(output);
    const auto weights =
        to_doubles(rig.find(cotangent).initial.data(), cotangent.dtype(), cotangent.numel());
    for (size_t i = 0; i < values.size(); ++i)
      sum += values[i] * weights[weights.size() == 1 ? 0 : i];
  }
  return sum;
}

/// dL/dx by differences of fourth order.
double difference_quotient(const Rig& rig, double& x) {
  const double h = 1e-3, middle = x;
  const auto at = [&](double step) {
    x = middle + step * h;
    const double value = loss(rig);
    x = middle;
    return value;
  };
  return (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * h);
}

class Gradient : public testing::TestWithParam<OpCase> {};

TEST_P(Gradient, EqualsCentralDifferences) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE("MIXTRAL_TEST_SEED=" + std::to_string(seed));
  ref::RefBackend backend;
  Rig rig(backend, Dtype::f64, seed);
  GetParam().build(rig);
  rig.execute();
  std::vector<std::vector<double>> analytic;
  for (const auto& pair : rig.gradients()) {
    analytic.push_back(read(pair.gradient));
    if (!pair.accumulated) continue;
    const auto before =
        to_doubles(rig.find(pair.gradient).initial.data(), Dtype::f64, pair.gradient.numel());
    for (size_t i = 0; i < before.size(); ++i) analytic.back()[i] -= before[i];
  }
  rig.restore();  // the op may have worked in place

  for (size_t g = 0; g < rig.gradients().size(); ++g) {
    const Tensor& input = rig.gradients()[g].input;
    double largest = 1e-3;  // gradients that are zero throughout are compared absolutely
    for (double value : analytic[g]) largest = std::max(largest, std::abs(value));
    // Some hundred elements of each input, the first and the last among them.
    const int64_t count = input.numel();
    const int64_t stride = std::max<int64_t>(1, (count - 1) / 99);
    for (int64_t i = 0; i < count;
         i = i + stride < count || i == count - 1 ? i + stride : count - 1) {
      const double numeric = difference_quotient(rig, input.as<double>()[i]);
      const double error = std::abs(numeric - analytic[g][static_cast<size_t>(i)]) / largest;
      ASSERT_LE(error, 1e-8) << rig.find(input).name << "[" << i << "]: the gradient is "
                             << analytic[g][static_cast<size_t>(i)] << ", differences say "
                             << numeric;
    }
  }
}

std::vector<OpCase> cases_with_gradients() {
  std::vector<OpCase> cases;
  ref::RefBackend backend;
  for (const auto& one : op_cases()) {
    if (one.benchmark || one.dtypes.front() != Dtype::f64) continue;
    Rig rig(backend, Dtype::f64, test_seed());
    one.build(rig);
    if (!rig.gradients().empty()) cases.push_back(one);
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Ref, Gradient, testing::ValuesIn(cases_with_gradients()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace mixtral::test
