#include "nn/stacked.h"

#include <algorithm>
#include <utility>

namespace mixtral::nn {

Stacked::Stacked(std::vector<Parameter> parameters) {
  for (Parameter& parameter : parameters) {
    parts_.push_back(std::make_unique<Linear>(std::move(parameter)));
    Linear& part = *parts_.back();
    CHECK(part.groups() == groups() && part.inputs() == inputs(), "stacked weights differ");
    part.at_column(outputs_);
    outputs_ += part.outputs();
  }
}

void Stacked::forward(Context& ctx, const Tensor& x, const RowGroups& rows, const Tensor& y) const {
  std::vector<ops::GroupedMatmul> products;
  products.reserve(parts_.size());
  for (const auto& part : parts_) products.push_back(part->product(ctx, x, rows, y));
  const auto direct = [&](const auto& product) { return ctx.backend().computes_directly(product); };
  if (std::ranges::all_of(products, direct)) return ctx.run_all(products);
  for (const auto& part : parts_) part->forward(ctx, x, rows, y);
}

void Stacked::backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows,
                             const Tensor& dx, Write write) const {
  for (const auto& part : parts_)
    part->backward_input(ctx, dy, rows, dx, part == parts_.front() ? write : Write::accumulate);
}

void Stacked::backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                              const RowGroups& rows) const {
  for (const auto& part : parts_) part->backward_weight(ctx, dy, x, rows);
}

bool Stacked::reads_input() const {
  return std::ranges::any_of(parts_, [](const auto& part) { return part->reads_input(); });
}

void Stacked::for_each_parameter(const ParameterVisitor& visit) {
  for (const auto& part : parts_) part->for_each_parameter(visit);
}

}  // namespace mixtral::nn
