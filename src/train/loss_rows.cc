#include "train/loss_rows.h"

#include <numeric>

#include "tensor/cutter.h"

namespace mixtral {
namespace {

std::vector<double> to_doubles(const Tensor& host) {
  if (host.dtype() == Dtype::f64) {
    const auto values = host.span<double>();
    return {values.begin(), values.end()};
  }
  const auto values = host.span<float>();
  return {values.begin(), values.end()};
}

}  // namespace

LossRows::LossRows(Context& ctx, const ModelConfig& config, int64_t rows)
    : per_expert_{config.num_layers, config.num_experts},
      per_layer_{config.num_layers},
      statistics_(ctx.statistics()) {
  const int64_t size = parts_at(nullptr).size;
  buffer_ = Buffer(ctx.backend(), rows * size);
  bytes_ = buffer_.tensor({rows, size}, Dtype::u8);
  fetched_.resize(static_cast<size_t>(size));
  ctx.run(ops::Fill{.x = bytes_});
}

LossRows::Parts LossRows::parts_at(void* base) const {
  Cutter cutter(base);
  Parts parts;
  parts.squared_norm = cutter.take({1}, Dtype::f64);
  parts.totals.cross_entropy = cutter.take({1}, Dtype::f64);
  parts.totals.router = cutter.take({2}, statistics_);
  parts.reports.load = cutter.take(per_expert_, statistics_);
  parts.reports.importance = cutter.take(per_expert_, statistics_);
  parts.reports.z = cutter.take(per_layer_, statistics_);
  parts.reports.entropy = cutter.take(per_layer_, statistics_);
  parts.size = cutter.size();
  return parts;
}

void LossRows::clear(Context& ctx, int64_t row) const { ctx.run(ops::Fill{.x = bytes_[row]}); }

void LossRows::copy(Context& ctx, int64_t from, int64_t to) const {
  ctx.run(ops::Convert{.x = bytes_[from], .y = bytes_[to]});
}

void LossRows::fetch(Context& ctx, int64_t row, Wait wait) {
  const Tensor host{std::span(fetched_)};
  if (wait == Wait::for_all)
    ctx.backend().download(bytes_[row], host);
  else
    ctx.backend().download_marked(bytes_[row], host);
}

LossValues LossRows::losses(const Objective& objective, int64_t labels) const {
  // The tensors are only read from.
  const Parts parts = parts_at(const_cast<uint8_t*>(fetched_.data()));
  const double cross_entropy = *parts.totals.cross_entropy.as<double>();
  const auto router = to_doubles(parts.totals.router);
  LossValues values;
  values.cross_entropy = labels > 0 ? cross_entropy / static_cast<double>(labels) : 0;
  values.aux = router[0];
  values.z = router[1];
  values.total = objective.total(values.cross_entropy, values.aux, values.z);
  return values;
}

RouterFigures LossRows::routers() const {
  const Parts parts = parts_at(const_cast<uint8_t*>(fetched_.data()));
  const auto load = to_doubles(parts.reports.load);
  const auto layers = static_cast<size_t>(per_expert_[0]);
  const auto experts = static_cast<size_t>(per_expert_[1]);
  RouterFigures figures;
  figures.entropy = to_doubles(parts.reports.entropy);
  for (size_t l = 0; l < layers; ++l) {
    const auto begin = load.begin() + static_cast<std::ptrdiff_t>(l * experts);
    std::vector<double> shares(begin, begin + static_cast<std::ptrdiff_t>(experts));
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) {
      figures.dead += share == 0;
      if (sum > 0) share /= sum;
    }
    figures.load.push_back(std::move(shares));
  }
  return figures;
}

double LossRows::squared_norm() const {
  return *parts_at(const_cast<uint8_t*>(fetched_.data())).squared_norm.as<double>();
}

}  // namespace mixtral
