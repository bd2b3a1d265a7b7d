#include "ops/matmul.h"

#include <algorithm>
#include <vector>

#include "ops/rounding.h"
#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

/// Whether both operands of a gradient's product are rounded to bf16.
bool rounds(ops::Operands operands) {
  return operands == ops::Operands::bf16 || operands == ops::Operands::fp8;
}

/// An operand of a product in f64, rounded to bf16 first or not.
std::vector<double> operand(const Tensor& tensor, bool round) {
  const Floats elements(tensor);
  std::vector<double> values(static_cast<size_t>(tensor.numel()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = elements[static_cast<int64_t>(i)];
    if (round) values[i] = static_cast<double>(static_cast<float>(round_to<bf16>(values[i])));
  }
  return values;
}

/// The numbers of a group's weight; dense ones are rounded to bf16 first or not.
std::vector<double> weight_of(const ops::Weight& weight, int64_t group, bool round) {
  if (weight.dense()) return operand(weight.tensor()[group], round);
  std::vector<double> values;
  std::vector<float> row(static_cast<size_t>(weight.inputs()));
  for (int64_t o = 0; o < weight.outputs(); ++o) {
    ops::unpack_row(weight, group * weight.outputs() + o, row);
    values.insert(values.end(), row.begin(), row.end());
  }
  return values;
}

/// Rows of x, rounded as the op asks beside this weight.
std::vector<double> rows_beside(const ops::Weight& weight, const Tensor& x,
                                ops::Operands rounding) {
  const ops::WeightFormat format = weight.format;
  std::vector<double> values = operand(x, ops::rounds_to_bf16(rounding, weight));
  const int block =
      format.dense() || rounding != ops::Operands::as_weight ? 0 : ops::activation_block(format);
  const bool fp8 = rounding == ops::Operands::fp8 && format == ops::WeightFormat::fp8;
  if (block == 0 && !fp8) return values;
  std::vector<float> row(static_cast<size_t>(x.dim(1)));
  for (auto at = values.begin(); at != values.end(); at += x.dim(1)) {
    std::transform(at, at + x.dim(1), row.begin(), [](double v) { return static_cast<float>(v); });
    if (fp8)
      ops::round_to_e4m3(row, row);
    else
      ops::round_to_integers(row, block, row);
    std::copy(row.begin(), row.end(), at);
  }
  return values;
}

/// The rows of one group.
struct Range {
  int64_t begin, end;
};

Range rows_of(const Tensor& offsets, int64_t group, int64_t rows) {
  if (offsets.empty()) return {0, rows};
  const Integers offset(offsets);
  return {offset[group], offset[group + 1]};
}

}  // namespace

void RefBackend::run(const ops::GroupedMatmul& op) {
  const int64_t groups = op.weight.groups(), outputs = op.weight.outputs(),
                inputs = op.weight.inputs();
  const Floats y(op.y);
  for (int64_t g = 0; g < groups; ++g) {
    const auto [begin, end] = rows_of(op.offsets, g, op.x.dim(0));
    if (begin == end) continue;
    const std::vector<double> weight =
        weight_of(op.weight, g, ops::rounds_to_bf16(op.operands, op.weight));
    const std::vector<double> x = rows_beside(op.weight, op.x.slice(begin, end), op.operands);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t o = 0; o < outputs; ++o) {
        const double* x_row = x.data() + (r - begin) * inputs;
        const double* weight_row = weight.data() + o * inputs;
        double sum = 0;
        for (int64_t i = 0; i < inputs; ++i) sum += x_row[i] * weight_row[i];
        const double before = op.accumulate ? y(r, op.y_begin + o) : 0.0;
        y(r, op.y_begin + o) = before + op.scale * sum;
      }
    }
  }
}

void RefBackend::run(const ops::GroupedMatmulInput& op) {
  const Tensor values = op.weight.tensor();
  const int64_t groups = values.dim(0), outputs = values.dim(1), inputs = values.dim(2);
  const int64_t columns = op.dy.dim(1);
  const Floats dx(op.dx);
  for (int64_t g = 0; g < groups; ++g) {
    const auto [begin, end] = rows_of(op.offsets, g, op.dx.dim(0));
    if (begin == end) continue;
    const std::vector<double> weight = operand(values[g], rounds(op.operands));
    const std::vector<double> dy = operand(op.dy.slice(begin, end), rounds(op.operands));
    for (int64_t r = begin; r < end; ++r) {
      std::vector<double> sum(static_cast<size_t>(inputs), 0.0);
      for (int64_t o = 0; o < outputs; ++o) {
        const double dy_o = dy[static_cast<size_t>((r - begin) * columns + op.dy_begin + o)];
        const double* weight_row = weight.data() + o * inputs;
        for (int64_t i = 0; i < inputs; ++i) sum[static_cast<size_t>(i)] += dy_o * weight_row[i];
      }
      for (int64_t i = 0; i < inputs; ++i) {
        const double before = op.accumulate ? dx(r, i) : 0.0;
        dx(r, i) = before + op.scale * sum[static_cast<size_t>(i)];
      }
    }
  }
}

void RefBackend::run(const ops::GroupedMatmulWeight& op) {
  const int64_t groups = op.dweight.dim(0), outputs = op.dweight.dim(1), inputs = op.dweight.dim(2);
  const int64_t columns = op.dy.dim(1);
  const Floats dweight(op.dweight);
  for (int64_t g = 0; g < groups; ++g) {
    const auto [begin, end] = rows_of(op.offsets, g, op.x.dim(0));
    if (begin == end && op.accumulate) continue;
    const std::vector<double> x = operand(op.x.slice(begin, end), rounds(op.operands));
    const std::vector<double> dy = operand(op.dy.slice(begin, end), rounds(op.operands));
    for (int64_t o = 0; o < outputs; ++o) {
      std::vector<double> sum(static_cast<size_t>(inputs), 0.0);
      for (int64_t r = 0; r < end - begin; ++r) {
        const double dy_o = dy[static_cast<size_t>(r * columns + op.dy_begin + o)];
        const double* x_row = x.data() + r * inputs;
        for (int64_t i = 0; i < inputs; ++i) sum[static_cast<size_t>(i)] += dy_o * x_row[i];
      }
      for (int64_t i = 0; i < inputs; ++i) {
        const double before = op.accumulate ? dweight(g, o, i) : 0.0;
        dweight(g, o, i) = before + op.scale * sum[static_cast<size_t>(i)];
      }
    }
  }
}

}  // namespace mixtral::ref
