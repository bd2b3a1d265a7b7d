// Cholesky's factorization A = C Cᵀ, a block of columns at a time: the block on the diagonal in
// double; the rows below it by forward substitution; then what they contribute to the columns that
// are left, by products of the backend, where nearly all of the work is. L = C / diag(C), D =
// diag(C)².
#include "convert/ldl.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mixtral {
namespace {

constexpr int64_t kBlock = 128;

/// A block on the diagonal, [size, size], as Cholesky's factor.
std::vector<double> factor_block(const Tensor& a, int64_t begin, int64_t size, double least) {
  std::vector<double> c(static_cast<size_t>(size * size));
  const auto at = [&](int64_t i, int64_t j) -> double& {
    return c[static_cast<size_t>(i * size + j)];
  };
  const int64_t n = a.dim(1);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      auto sum = static_cast<double>(a.as<float>()[(begin + i) * n + begin + j]);
      for (int64_t k = 0; k < j; ++k) sum -= at(i, k) * at(j, k);
      at(i, j) = i == j ? std::sqrt(std::max(sum, least)) : sum / at(j, j);
    }
  }
  return c;
}

}  // namespace

void factor_ldl(Context& ctx, ThreadPool& threads, const Tensor& a, float least) {
  const int64_t n = a.dim(0);
  CHECK(a.rank() == 2 && a.dim(1) == n && a.dtype() == Dtype::f32 && least > 0);
  float* values = a.as<float>();
  const ArenaScope scope(ctx.arena());
  const Tensor panel = ctx.allocate({n, std::min(n, kBlock)}, Dtype::f32);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n), size = end - begin;
    const std::vector<double> c = factor_block(a, begin, size, static_cast<double>(least));
    const auto at = [&](int64_t i, int64_t j) { return c[static_cast<size_t>(i * size + j)]; };
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < i; ++j)
        values[(begin + i) * n + begin + j] = static_cast<float>(at(i, j) / at(j, j));
      values[(begin + i) * n + begin + i] = static_cast<float>(at(i, i) * at(i, i));
    }
    const Tensor below = panel.view(0, {n - end, size});
    threads.for_ranges(n - end, 16, [&](int64_t first, int64_t last) {
      std::vector<double> x(static_cast<size_t>(size));
      for (int64_t row = first; row < last; ++row) {
        float* from = values + (end + row) * n + begin;
        for (int64_t j = 0; j < size; ++j) {
          auto sum = static_cast<double>(from[j]);
          for (int64_t k = 0; k < j; ++k) sum -= x[static_cast<size_t>(k)] * at(j, k);
          const double value = sum / at(j, j);
          x[static_cast<size_t>(j)] = value;
          below.as<float>()[row * size + j] = static_cast<float>(value);
          from[j] = static_cast<float>(value / at(j, j));
        }
      }
    });
    for (int64_t column = end; column < n; column += kBlock) {
      const int64_t next = std::min(column + kBlock, n);
      ctx.run(ops::GroupedMatmul{.x = below.slice(column - end, n - end),
                                 .weight = below.slice(column - end, next - end),
                                 .offsets = {},
                                 .y = a.slice(column, n),
                                 .y_begin = column,
                                 .scale = -1,
                                 .accumulate = true});
    }
  }
}

}  // namespace mixtral
