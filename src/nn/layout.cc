#include "nn/layout.h"

#include <algorithm>
#include <deque>

namespace mixtral::nn {
namespace {

/// Rows that are changed at a time: whole bundles of every layout, few enough for a cache.
int64_t rows_at_once(const ops::Weight& weight) {
  constexpr int64_t kBytes = 256 << 10, kBundle = 16;
  const int64_t bundle = kBundle * std::max<int64_t>(1, weight.format.row_bytes(weight.inputs()));
  return kBundle * std::max<int64_t>(1, kBytes / bundle);
}

}  // namespace

void set_layout(Backend& backend, Parameter& parameter, ops::WeightLayout layout) {
  ops::Weight& device = parameter.packed;
  if (!device || device.layout == layout) return;
  CHECK(ops::has_layout(device.format, device.shape, layout), "a weight that has no such layout");
  if (backend.change_layout(device, layout)) {
    device.layout = layout;
    return;
  }
  std::deque<Buffer> buffers;
  const auto take = [&](Shape shape, Dtype dtype) {
    buffers.emplace_back(host_memory(), shape.numel() * size_of(dtype));
    return buffers.back().tensor(shape, dtype);
  };
  const int64_t step = std::min(rows_at_once(device), device.rows());
  const Shape shape{1, step, device.inputs()};
  ops::Weight before = ops::make_weight(shape, device.format, take);
  ops::Weight after = ops::make_weight(shape, device.format, take);
  before.layout = device.layout;
  after.layout = layout;
  for (int64_t row = 0; row < device.rows(); row += step) {
    const int64_t count = std::min(step, device.rows() - row);
    const ops::Weight part = device.slice_rows(row, row + count);
    const ops::Weight from = before.slice_rows(0, count), to = after.slice_rows(0, count);
    for (const auto piece : ops::kWeightPieces)
      if (part.*piece) backend.download(part.*piece, from.*piece);
    ops::change_layout(from, to);
    for (const auto piece : ops::kWeightPieces)
      if (part.*piece) backend.upload(to.*piece, part.*piece);
  }
  backend.synchronize();  // the host's copy goes
  device.layout = layout;
}

void use_preferred_layouts(Backend& backend, const ParameterSource& source) {
  source([&](Parameter& p) {
    if (!p.packed) return;
    const ops::WeightLayout wanted = backend.preferred_layout(p.packed.format, p.packed.shape);
    set_layout(backend, p, wanted);
  });
}

void use_plain_rows(Backend& backend, const ParameterSource& source) {
  source([&](Parameter& p) { set_layout(backend, p, ops::WeightLayout::rows); });
}

}  // namespace mixtral::nn
