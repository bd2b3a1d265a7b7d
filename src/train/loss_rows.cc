#include "train/loss_rows.h"

#include <numeric>

namespace mixtral {
namespace {

/// Cuts tensors from a buffer, each aligned to 256 bytes.
class Cutter {
 public:
  Tensor take(Shape shape, Dtype dtype) {
    const int64_t begin = offset_;
    offset_ += (shape.numel() * size_of(dtype) + 255) / 256 * 256;
    return {base_ ? base_ + begin : nullptr, shape, dtype};
  }
  int64_t size() const { return offset_; }
  /// Starts again, in memory.
  void place(const Buffer& buffer) {
    base_ = static_cast<char*>(buffer.data());
    offset_ = 0;
  }

 private:
  char* base_ = nullptr;
  int64_t offset_ = 0;
};

std::vector<double> to_host(Backend& backend, const Tensor& device) {
  const auto count = static_cast<size_t>(device.numel());
  std::vector<double> result(count);
  if (device.dtype() == Dtype::f64) {
    backend.download(device, Tensor(result.data(), device.shape(), Dtype::f64));
  } else {
    std::vector<float> values(count);
    backend.download(device, Tensor(values.data(), device.shape(), Dtype::f32));
    result.assign(values.begin(), values.end());
  }
  return result;
}

}  // namespace

LossRows::LossRows(Context& ctx, const ModelConfig& config, int64_t rows) {
  const Shape per_expert{config.num_layers, config.num_experts};
  const Shape per_layer{config.num_layers};
  const Dtype statistics = ctx.statistics();
  Cutter cutter;
  auto cut = [&] {
    cross_entropy_ = cutter.take({rows}, Dtype::f64);
    router_ = cutter.take({rows, 2}, statistics);
    label_scale_ = cutter.take({1}, statistics);
    reports_ = {.load = cutter.take(per_expert, statistics),
                .importance = cutter.take(per_expert, statistics),
                .z = cutter.take(per_layer, statistics),
                .entropy = cutter.take(per_layer, statistics)};
  };
  cut();
  buffer_ = Buffer(ctx.backend(), cutter.size());
  cutter.place(buffer_);
  cut();
  for (const Tensor& report : {reports_.load, reports_.importance, reports_.z, reports_.entropy})
    ctx.run(ops::Fill{.x = report});
}

LossTotals LossRows::totals(int64_t row) const {
  return {.cross_entropy = cross_entropy_.slice(row, row + 1), .router = router_[row]};
}

void LossRows::clear(Context& ctx, int64_t row) const {
  const LossTotals cleared = totals(row);
  ctx.run(ops::Fill{.x = cleared.cross_entropy});
  ctx.run(ops::Fill{.x = cleared.router});
}

RouterFigures LossRows::read_routers(Context& ctx) const {
  const auto load = to_host(ctx.backend(), reports_.load);
  const auto layers = static_cast<size_t>(reports_.load.dim(0));
  const auto experts = static_cast<size_t>(reports_.load.dim(1));
  RouterFigures figures;
  figures.entropy = to_host(ctx.backend(), reports_.entropy);
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

}  // namespace mixtral
