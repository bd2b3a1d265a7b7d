#include "nn/layout.h"

#include <deque>

namespace mixtral::nn {

void set_layout(Backend& backend, Parameter& parameter, ops::WeightLayout layout) {
  ops::Weight& device = parameter.packed;
  if (!device || device.layout == layout) return;
  std::deque<Buffer> buffers;
  const auto take = [&](Shape shape, Dtype dtype) {
    buffers.emplace_back(host_memory(), shape.numel() * size_of(dtype));
    return buffers.back().tensor(shape, dtype);
  };
  ops::Weight before = ops::make_weight(device.shape, device.format, take);
  ops::Weight after = ops::make_weight(device.shape, device.format, take);
  before.layout = device.layout;
  after.layout = layout;
  for (const auto piece : ops::kWeightPieces)
    if (device.*piece) backend.download(device.*piece, before.*piece);
  ops::change_layout(before, after);
  for (const auto piece : ops::kWeightPieces)
    if (device.*piece) backend.upload(after.*piece, device.*piece);
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
