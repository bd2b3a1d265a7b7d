#include "convert/compensated_rounding.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "convert/ldl.h"

namespace mixtral {
namespace {

// Added to the diagonal, as a share of its mean: what inputs beyond this text may be like.
constexpr double kDamping = 0.01;
constexpr int64_t kLeastColumns = 128;  // that are rounded between two products
constexpr int64_t kProductRows = 1024;  // of products, for their size

double products_size(Context& ctx, const Tensor& values, const Tensor& inputs) {
  double size = 0;
  for (int64_t begin = 0; begin < inputs.dim(0); begin += kProductRows) {
    const ArenaScope scope(ctx.arena());
    const Tensor rows = inputs.slice(begin, std::min(begin + kProductRows, inputs.dim(0)));
    const Tensor y = ctx.allocate({rows.dim(0), values.dim(0)}, Dtype::f32);
    ctx.run(ops::GroupedMatmul{.x = rows, .weight = values, .offsets = {}, .y = y});
    for (const float value : y.span<float>())
      size += static_cast<double>(value) * static_cast<double>(value);
  }
  return size;
}

/// The factors of inputsᵀ inputs, damped.
Tensor factored_squares(Context& ctx, ThreadPool& threads, const Tensor& inputs) {
  const int64_t n = inputs.dim(1);
  const Tensor squares = ctx.allocate({n, n}, Dtype::f32);
  ctx.run(ops::GroupedMatmulWeight{.dy = inputs,
                                   .x = inputs,
                                   .offsets = {},
                                   .dweight = squares.reshape({1, n, n}),
                                   .accumulate = false});
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += static_cast<double>(squares.as<float>()[i * n + i]);
  // Inputs that are all 0 say nothing: then every column counts alike.
  const auto damping =
      trace > 0 ? static_cast<float>(kDamping * trace / static_cast<double>(n)) : 1.f;
  for (int64_t i = 0; i < n; ++i) squares.as<float>()[i * n + i] += damping;
  factor_ldl(ctx, threads, squares, 0.1f * damping);
  return squares;
}

/// Rounds the rows of a matrix, some columns at a time.
class RowWork {
 public:
  RowWork(const Tensor& values, const Tensor& factors, const Tensor& packed)
      : values_(values), factors_(factors), packed_(packed), weights_(size()) {
    for (int64_t i = 0; i < factors.dim(0); ++i) weights_[static_cast<size_t>(i)] = factor(i)[i];
  }

  /// Columns [begin, end), which are whole units, from the last to the first. The row of `packed`
  /// holds the numbers as the errors of the columns behind them have changed them, and gets those
  /// that are kept; `errors` [end − begin] how they differ from the values. Returns the weighted
  /// squared error.
  double round(int64_t row, int64_t begin, int64_t end, ops::BlockRounder& rounder,
               float* errors) const {
    const auto unit = static_cast<int64_t>(rounder.unit());
    const auto block = static_cast<int64_t>(rounder.block());
    const float *values = row_of(values_, row), *weights = weights_.data();
    float* numbers = row_of(packed_, row);
    std::vector<float> ahead(rounder.unit());
    double sum = 0;
    for (int64_t first = end - unit; first >= begin; first -= unit) {
      look_ahead(values, numbers, first, first + unit, ahead.data());
      rounder.open(ahead.data(), weights + first);
      for (int64_t at = first + unit - block; at >= first; at -= block) {
        if (block < unit) look_ahead(values, numbers, at, at + block, ahead.data());
        rounder.open_block(static_cast<size_t>((at - first) / block), ahead.data(), weights + at);
        for (int64_t k = at + block - 1; k >= at; --k) {
          const float kept = rounder.round(static_cast<size_t>(k - first), numbers[k]);
          const auto off = static_cast<double>(numbers[k] - kept);
          sum += static_cast<double>(weights[k]) * off * off;
          const float error = values[k] - kept;
          errors[k - begin] = error;
          numbers[k] = kept;
          const float* l = factor(k);
          for (int64_t i = begin; i < k; ++i) numbers[i] += error * l[i];
        }
      }
      rounder.close(static_cast<size_t>(first / unit));
    }
    return sum;
  }

 private:
  size_t size() const { return static_cast<size_t>(factors_.dim(0)); }
  const float* factor(int64_t k) const { return row_of(factors_, k); }
  static float* row_of(const Tensor& x, int64_t row) { return x.as<float>() + row * x.dim(1); }

  /// The numbers that columns [begin, end) would be rounded from if nothing were lost in rounding
  /// them: what scales are chosen for.
  void look_ahead(const float* values, const float* numbers, int64_t begin, int64_t end,
                  float* ahead) const {
    std::copy(numbers + begin, numbers + end, ahead);
    for (int64_t k = end - 1; k > begin; --k) {
      const float error = values[k] - ahead[k - begin];
      const float* l = factor(k) + begin;
      for (int64_t i = 0; i < k - begin; ++i) ahead[i] += error * l[i];
    }
  }

  const Tensor &values_, &factors_, &packed_;
  std::vector<float> weights_;  // of each column's squared error
};

}  // namespace

RoundingLoss round_compensated(Context& ctx, ThreadPool& threads, const Tensor& values,
                               const Tensor& inputs, const RowRounders& rounders,
                               const Tensor& packed) {
  const int64_t rows = values.dim(0), n = values.dim(1);
  const ArenaScope scope(ctx.arena());
  RoundingLoss loss{.size = products_size(ctx, values, inputs)};
  const Tensor factors = factored_squares(ctx, threads, inputs);
  std::memcpy(packed.data(), values.data(), static_cast<size_t>(values.bytes()));
  const RowWork work(values, factors, packed);
  const auto unit = static_cast<int64_t>(rounders(0)->unit());
  CHECK(n % unit == 0);
  const int64_t width = (kLeastColumns + unit - 1) / unit * unit;
  const Tensor errors = ctx.allocate({rows, std::min(width, n)}, Dtype::f32);
  const Tensor turned = ctx.allocate({n, std::min(width, n)}, Dtype::f32);
  std::vector<double> losses(static_cast<size_t>(rows));
  for (int64_t end = n; end > 0; end = std::max<int64_t>(0, end - width)) {
    const int64_t begin = std::max<int64_t>(0, end - width), size = end - begin;
    const Tensor own = errors.view(0, {rows, size});
    threads.for_ranges(rows, 8, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        losses[static_cast<size_t>(row)] +=
            work.round(row, begin, end, *rounders(row), own.as<float>() + row * size);
    });
    if (begin == 0) break;
    const Tensor l = turned.view(0, {begin, size});
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < begin; ++k)
        l.as<float>()[k * size + j] = factors.as<float>()[(begin + j) * n + k];
    ctx.run(ops::GroupedMatmul{
        .x = own, .weight = l, .offsets = {}, .y = packed, .y_begin = 0, .accumulate = true});
  }
  for (const double row : losses) loss.error += row;
  return loss;
}

}  // namespace mixtral
