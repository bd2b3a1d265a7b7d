#include "convert/edited_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/pages.h"
#include "base/random.h"
#include "io/convert.h"
#include "model/checkpoint.h"

namespace mixtral {
namespace {

constexpr int64_t kAtOnce = int64_t{1} << 16;  // numbers; sums go over as many, in their order

std::string_view type_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return "BF16";
    case Dtype::f16:
      return "F16";
    case Dtype::f64:
      return "F64";
    default:
      return "F32";
  }
}

Tensor room(Buffer& buffer, Shape shape, Dtype dtype) {
  const int64_t bytes = shape.numel() * size_of(dtype);
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = Buffer(host_memory(), bytes);
  }
  return buffer.tensor(shape, dtype);
}

/// Of the numbers of one matrix, or of one row of a router.
uint64_t stream_of(const TensorId& id) {
  return static_cast<uint64_t>(id.layer) << 32 | static_cast<uint64_t>(id.expert) << 8 |
         static_cast<uint64_t>(id.kind);
}

TensorPlace place_in(const ModelSource& source, const TensorId& id) {
  const auto place = find_place(source.tensors(), source.config(), id);
  if (!place)
    throw Error(fmt::format("{}: the tensor {} is missing", source.tensors().path().string(),
                            name_in_files(source.tensors(), id)));
  return *place;
}

}  // namespace

EditedTensors::EditedTensors(const ModelEdit& edit, int threads) : edit_(edit), threads_(threads) {
  CHECK(static_cast<int64_t>(edit.layers.size()) == edit.config.num_layers);
  for (const ModelSource* source : edit.sources) check_weights(source->config(), source->tensors());
  for_each_tensor(edit.config, [&](const TensorId& id) {
    const auto& made = entries_.emplace(tensor_name(id), std::pair(id, describe(id))).first->second;
    names_.push_back(made.second.name);
  });
}

TensorEntry EditedTensors::describe(const TensorId& id) const {
  std::optional<Dtype> agreed;
  bool agree = true;
  for (const ModelEdit::Origin& origin : edit_.origins(id)) {
    const ModelSource& source = *edit_.sources[origin.source];
    const TensorEntry& entry = source.tensors().at(place_in(source, origin.id).name);
    const Dtype own = entry.coded ? Dtype::f32 : entry.dtype.value_or(Dtype::f32);
    agree &= !agreed || *agreed == own;
    agreed = own;
  }
  const Dtype dtype = agree ? agreed.value_or(edit_.config.dtype) : edit_.config.dtype;
  const Shape shape = tensor_shape(edit_.config, id.kind);
  TensorEntry entry{.name = tensor_name(id),
                    .type = std::string(type_name(dtype)),
                    .dtype = dtype,
                    .format = {},
                    .dims = {}};
  for (int i = 0; i < shape.rank(); ++i) entry.dims.push_back(shape[i]);
  return entry;
}

const TensorEntry* EditedTensors::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second.second;
}

void EditedTensors::read_from(const ModelEdit::Origin& origin, const Tensor& to) const {
  const ModelSource& source = *edit_.sources[origin.source];
  const TensorPlace place = place_in(source, origin.id);
  read_tensor(source.tensors(), place, source.config(), origin.id, to);
  release_pages(source.tensors().raw(place.name));
}

void EditedTensors::add_noise(const TensorId& id, double* values, int64_t count) const {
  // Partial sums, so that the deviation does not depend on the number of threads.
  std::vector<double> squares(static_cast<size_t>((count + kAtOnce - 1) / kAtOnce));
  const auto pieces = static_cast<int64_t>(squares.size());
  threads_.for_each(pieces, [&](int64_t piece, int) {
    double sum = 0;
    for (int64_t i = piece * kAtOnce; i < std::min(count, (piece + 1) * kAtOnce); ++i)
      sum += values[i] * values[i];
    squares[static_cast<size_t>(piece)] = sum;
  });
  double sum = 0;
  for (const double square : squares) sum += square;
  const double deviation = edit_.noise * std::sqrt(sum / static_cast<double>(count));
  threads_.for_each(pieces, [&](int64_t piece, int) {
    constexpr uint64_t kDraws = 3;  // that a number takes
    RandomStream random(edit_.seed, stream_of(id), kDraws * static_cast<uint64_t>(piece * kAtOnce));
    for (int64_t i = piece * kAtOnce; i < std::min(count, (piece + 1) * kAtOnce); ++i) {
      const bool chosen = random.uniform() < edit_.noise_share;
      const double drawn = random.normal();
      if (chosen) values[i] += deviation * drawn;
    }
  });
}

void EditedTensors::make_expert(const TensorId& id, double* values, int64_t count) const {
  const Tensor part = room(part_, tensor_shape(edit_.config, id.kind), Dtype::f64);
  for (const ModelEdit::Origin& origin : edit_.origins(id)) {
    read_from(origin, part);
    threads_.for_ranges(count, kAtOnce, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += origin.weight * part.as<double>()[i];
    });
  }
  const LayerEdit& layer = edit_.layers[static_cast<size_t>(id.layer)];
  if (layer.experts[static_cast<size_t>(id.expert)].noisy) add_noise(id, values, count);
}

void EditedTensors::make_router(const TensorId& id, double* values) const {
  const LayerEdit& layer = edit_.layers[static_cast<size_t>(id.layer)];
  const int64_t width = edit_.config.hidden_size;
  if (!layer.router.empty()) {
    CHECK(static_cast<int64_t>(layer.router.size()) == edit_.config.num_experts * width);
    std::ranges::copy(layer.router, values);
    return;
  }
  std::map<size_t, std::vector<double>> routers;  // of the sources
  for (const ModelEdit::Origin& origin : edit_.origins(id)) {
    const Shape shape = tensor_shape(edit_.sources[origin.source]->config(), TensorKind::router);
    std::vector<double>& own = routers[origin.source];
    own.resize(static_cast<size_t>(shape.numel()));
    read_from(origin, Tensor(own.data(), shape, Dtype::f64));
  }
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    double* row = values + static_cast<int64_t>(e) * width;
    for (const ExpertShare& share : layer.experts[e].shares)
      for (int64_t i = 0; i < width; ++i)
        row[i] +=
            share.weight * routers.at(share.source)[static_cast<size_t>(share.expert * width + i)];
    if (layer.experts[e].noisy)
      add_noise({.kind = id.kind, .layer = id.layer, .expert = static_cast<int64_t>(e)}, row,
                width);
  }
}

/// The tensor as a file in its type has it. Valid until the next call.
Tensor EditedTensors::made(const TensorId& id, Dtype dtype) const {
  const Shape shape = tensor_shape(edit_.config, id.kind);
  const Tensor result = room(result_, shape, dtype);
  const Tensor sum = room(sum_, shape, Dtype::f64);
  auto* values = sum.as<double>();
  std::fill_n(values, sum.numel(), 0.0);
  if (id.kind == TensorKind::router)
    make_router(id, values);
  else
    make_expert(id, values, sum.numel());
  convert_elements(static_cast<const std::byte*>(sum.data()), Dtype::f64,
                   static_cast<std::byte*>(result.data()), dtype, sum.numel());
  return result;
}

void EditedTensors::read(std::string_view name, int64_t first, const Tensor& to) const {
  const auto found = entries_.find(name);
  CHECK(found != entries_.end(), std::string(name));
  const auto& [id, entry] = found->second;
  const auto origins = edit_.origins(id);
  const bool copied = id.kind != TensorKind::router && origins.size() == 1 &&
                      origins.front().weight == 1 &&
                      (id.expert < 0 || edit_.layers[static_cast<size_t>(id.layer)]
                                            .experts[static_cast<size_t>(id.expert)]
                                            .is_copy());
  const Shape shape = tensor_shape(edit_.config, id.kind);
  if (copied && first == 0 && to.numel() == shape.numel()) {
    read_from(origins.front(), Tensor(to.data(), shape, to.dtype()));
    return;
  }
  const std::scoped_lock lock(mutex_);
  const Dtype dtype = *entry.dtype;
  Tensor whole;
  if (copied) {
    whole = room(result_, shape, dtype);
    read_from(origins.front(), whole);
  } else {
    whole = made(id, dtype);
  }
  convert_elements(static_cast<const std::byte*>(whole.data()) + first * size_of(dtype), dtype,
                   static_cast<std::byte*>(to.data()), to.dtype(), to.numel());
}

}  // namespace mixtral
