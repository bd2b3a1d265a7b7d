// Rounding with compensation against the textbook's: eliminate a column from the inverse of XᵀX,
// spread its error, go on; in double.
#include "convert/compensated_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "backends/registry.h"
#include "convert/ldl.h"

namespace mixtral {
namespace {

using Matrix = std::vector<double>;  // row by row

/// Rounds to multiples of a step that a unit's largest number decides.
class StepRounder : public ops::BlockRounder {
 public:
  size_t unit() const override { return 8; }
  size_t block() const override { return 8; }
  void open(const float* values, const float*) override {
    float most = 0;
    for (size_t i = 0; i < unit(); ++i) most = std::max(most, std::abs(values[i]));
    step_ = most / 7;
  }
  void open_block(size_t, const float*, const float*) override {}
  float round(size_t, float value) override {
    return step_ > 0 ? step_ * std::round(value / step_) : 0;
  }
  void close(size_t) override {}

 private:
  float step_ = 0;
};

struct Case {
  int64_t rows, columns, inputs;
  std::vector<float> values, x;

  Case(int64_t o, int64_t i, int64_t n, unsigned seed)
      : rows(o),
        columns(i),
        inputs(n),
        values(static_cast<size_t>(o * i)),
        x(static_cast<size_t>(n * i)) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(engine);
    // Neighbouring columns are alike, and their sizes differ.
    for (int64_t r = 0; r < n; ++r) {
      float last = 0;
      for (int64_t c = 0; c < i; ++c) {
        last = 0.8f * last + 0.6f * normal(engine);
        x[static_cast<size_t>(r * i + c)] = last * (0.3f + static_cast<float>(c % 5));
      }
    }
  }

  Matrix squares(double damping) const {
    const auto n = static_cast<size_t>(columns);
    Matrix h(n * n);
    for (size_t r = 0; r < static_cast<size_t>(inputs); ++r)
      for (size_t a = 0; a < n; ++a)
        for (size_t b = 0; b < n; ++b)
          h[a * n + b] += static_cast<double>(x[r * n + a]) * static_cast<double>(x[r * n + b]);
    double trace = 0;
    for (size_t a = 0; a < n; ++a) trace += h[a * n + a];
    for (size_t a = 0; a < n; ++a) h[a * n + a] += damping * trace / static_cast<double>(n);
    return h;
  }

  /// Σ over rows of e H eᵀ.
  double loss(const std::vector<float>& packed, const Matrix& h) const {
    const auto n = static_cast<size_t>(columns);
    double sum = 0;
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
      for (size_t a = 0; a < n; ++a)
        for (size_t b = 0; b < n; ++b)
          sum += static_cast<double>(values[r * n + a] - packed[r * n + a]) * h[a * n + b] *
                 static_cast<double>(values[r * n + b] - packed[r * n + b]);
    return sum;
  }
};

/// The inverse, by Gauss and Jordan, without pivots: h is positive definite.
Matrix inverse(Matrix h, size_t n) {
  Matrix result(n * n);
  for (size_t i = 0; i < n; ++i) result[i * n + i] = 1;
  for (size_t k = 0; k < n; ++k) {
    const double pivot = h[k * n + k];
    for (size_t j = 0; j < n; ++j) {
      h[k * n + j] /= pivot;
      result[k * n + j] /= pivot;
    }
    for (size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const double factor = h[i * n + k];
      for (size_t j = 0; j < n; ++j) {
        h[i * n + j] -= factor * h[k * n + j];
        result[i * n + j] -= factor * result[k * n + j];
      }
    }
  }
  return result;
}

/// Optimal Brain Quantization of one row in a fixed order, from the last column to the first.
std::vector<float> textbook_row(const float* values, Matrix inverse, size_t n) {
  std::vector<double> w(values, values + n);
  std::vector<float> packed(n);
  StepRounder rounder;
  for (size_t k = n; k-- > 0;) {
    if ((k + 1) % rounder.unit() == 0) {
      const std::vector<float> unit(w.begin() + static_cast<std::ptrdiff_t>(k + 1 - rounder.unit()),
                                    w.begin() + static_cast<std::ptrdiff_t>(k + 1));
      rounder.open(unit.data(), nullptr);
    }
    packed[k] = rounder.round(0, static_cast<float>(w[k]));
    const double error = (w[k] - static_cast<double>(packed[k])) / inverse[k * n + k];
    for (size_t j = 0; j < k; ++j) w[j] -= error * inverse[j * n + k];
    const Matrix before = inverse;
    for (size_t i = 0; i < k; ++i)
      for (size_t j = 0; j < k; ++j)
        inverse[i * n + j] -= before[i * n + k] * before[k * n + j] / before[k * n + k];
  }
  return packed;
}

class Compensated : public ::testing::Test {
 protected:
  std::vector<float> round(Case& c, RoundingLoss* loss = nullptr) {
    std::vector<float> packed(c.values.size());
    const RoundingLoss found = round_compensated(
        ctx_, threads_, tensor(c.values, c.rows, c.columns), tensor(c.x, c.inputs, c.columns),
        [](int64_t) { return std::make_unique<StepRounder>(); }, tensor(packed, c.rows, c.columns));
    if (loss) *loss = found;
    return packed;
  }
  static Tensor tensor(std::vector<float>& values, int64_t rows, int64_t columns) {
    return {values.data(), {rows, columns}, Dtype::f32};
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", 2);
  ThreadPool threads_{2};
  Arena arena_{*backend_};
  Context ctx_{*backend_, arena_, Dtype::f32};
};

TEST_F(Compensated, GivesTheTextbooksNumbers) {
  Case c(4, 152, 200, 3);  // more columns than are rounded at a time, not a multiple of these
  const auto n = static_cast<size_t>(c.columns);
  const Matrix inverted = inverse(c.squares(0.01), n);
  const std::vector<float> packed = round(c);
  // A number half way between two steps may fall to either, and changes what follows.
  int rows_alike = 0;
  for (size_t r = 0; r < 4; ++r) {
    const std::vector<float> want = textbook_row(&c.values[r * n], inverted, n);
    double off = 0;
    for (size_t k = 0; k < n; ++k)
      off = std::max(off, static_cast<double>(std::abs(want[k] - packed[r * n + k])));
    rows_alike += off < 1e-3;
  }
  EXPECT_GE(rows_alike, 3);
}

TEST_F(Compensated, ChangesProductsLessThanTheNearestAndSaysByHowMuch) {
  Case c(8, 136, 160, 4);
  RoundingLoss loss;
  const std::vector<float> packed = round(c, &loss);
  std::vector<float> nearest(c.values.size());
  StepRounder rounder;
  for (size_t i = 0; i < nearest.size(); ++i) {
    if (i % rounder.unit() == 0) rounder.open(&c.values[i], nullptr);
    nearest[i] = rounder.round(0, c.values[i]);
  }
  const Matrix plain = c.squares(0), damped = c.squares(0.01);
  EXPECT_LT(c.loss(packed, plain), 0.5 * c.loss(nearest, plain));
  EXPECT_NEAR(loss.error, c.loss(packed, damped), 1e-3 * loss.error);
  const std::vector<float> zeros(c.values.size());
  EXPECT_NEAR(loss.size, c.loss(zeros, plain), 1e-4 * loss.size);
}

TEST_F(Compensated, InputsThatSayNothingLeaveTheNearest) {
  Case c(3, 16, 5, 5);
  std::fill(c.x.begin(), c.x.end(), 0.f);
  const std::vector<float> packed = round(c);
  StepRounder rounder;
  for (size_t i = 0; i < packed.size(); ++i) {
    if (i % rounder.unit() == 0) rounder.open(&c.values[i], nullptr);
    EXPECT_EQ(packed[i], rounder.round(0, c.values[i])) << i;
  }
}

TEST_F(Compensated, FactorsGiveTheMatrixBack) {
  const Case c(1, 200, 220, 6);
  const size_t n = 200;
  const Matrix h = c.squares(0.01);
  std::vector<float> a(h.begin(), h.end());
  factor_ldl(ctx_, threads_, tensor(a, 200, 200), 1e-3f);
  double size = 0, off = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (size_t k = 0; k <= j; ++k)
        sum += (k == i ? 1 : static_cast<double>(a[i * n + k])) *
               static_cast<double>(a[k * n + k]) * (k == j ? 1 : static_cast<double>(a[j * n + k]));
      off = std::max(off, std::abs(sum - h[i * n + j]));
      size = std::max(size, std::abs(h[i * n + j]));
    }
  }
  EXPECT_LT(off, 1e-5 * size);
}

TEST_F(Compensated, ASingularMatrixIsFactoredWithTheLeastPivot) {
  std::vector<float> a(16, 1.f);  // rank 1
  factor_ldl(ctx_, threads_, tensor(a, 4, 4), 0.5f);
  EXPECT_FLOAT_EQ(a[0], 1);
  for (const size_t i : {5, 10, 15}) EXPECT_FLOAT_EQ(a[i], 0.5f);
}

}  // namespace
}  // namespace mixtral
