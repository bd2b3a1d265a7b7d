#include "nn/parameter.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>
#include <vector>

#include "nn/layout.h"
#include "tensor/cutter.h"

namespace mixtral::nn {
namespace {

constexpr int64_t kAlignment =
    64;  // elements between parameters of a group: whole vectors and tiles

int64_t aligned(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

/// Throws Error unless the parameter can be kept in its format on the backend.
void check_format(const Backend& backend, const Parameter& p) {
  CHECK(!p.trainable, "a parameter in a format of its own cannot be trained");
  CHECK(p.shape.rank() >= 2, "only matrices have a format of their own");
  const ops::WeightFormat format = *p.format;
  if (!backend.has_format(format))
    throw Error(fmt::format("{}: the device {} cannot unpack weights in the format {}; use the CPU",
                            p.parts.front().name, backend.name(), format.name()));
  if (p.columns() % format.unit() != 0)
    throw Error(fmt::format("{}: a row has {} numbers, but the format {} needs whole blocks of {}",
                            p.parts.front().name, p.columns(), format.name(), format.unit()));
}

}  // namespace

uint64_t name_hash(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

Parameter make_parameter(std::string name, Shape shape, Role role) {
  Parameter parameter;
  parameter.shape = shape;
  parameter.role = role;
  parameter.parts.push_back({std::move(name), 0, shape});
  return parameter;
}

ParameterStore::ParameterStore(Backend& backend, const ParameterSource& source, Dtype values,
                               Dtype gradients) {
  place_formats(backend, source, values);
  for (const bool trainable : {true, false}) {
    for (const bool decay : {true, false}) {
      auto in_group = [&](const Parameter& p) {
        return !p.placed() && p.trainable == trainable && p.decays() == decay;
      };
      int64_t count = 0;
      source([&](Parameter& p) {
        if (in_group(p)) count += aligned(p.shape.numel());
      });
      if (count == 0) continue;
      Group group;
      group.decay = decay;
      group.trainable = trainable;
      buffers_.emplace_back(backend, count * size_of(values));
      group.value = buffers_.back().tensor({count}, values);
      if (trainable) {
        // The gaps between parameters must hold numbers: the optimizer and the norm run over them.
        backend.run(ops::Fill{.x = group.value});
        buffers_.emplace_back(backend, count * size_of(gradients));
        group.grad = buffers_.back().tensor({count}, gradients);
        backend.run(ops::Fill{.x = group.grad});
      }
      int64_t offset = 0;
      for (const bool one_product : {true, false}) {
        source([&](Parameter& p) {
          if (!in_group(p) || p.one_product() != one_product) return;
          p.type = values;
          p.value = group.value.view(offset, p.shape);
          if (trainable) p.grad = group.grad.view(offset, p.shape);
          offset += aligned(p.shape.numel());
        });
        if (one_product) group.one_product = offset;
      }
      groups_.push_back(group);
    }
  }
}

void ParameterStore::place_formats(Backend& backend, const ParameterSource& source, Dtype values) {
  const auto shape_of = [](const Parameter& p) {
    const Shape& s = p.shape;
    return s.rank() == 3 ? s : Shape{1, s[0], s[1]};
  };
  const auto moves = [&](const Parameter& p) {
    const ops::WeightFormat format = p.format.value_or(ops::dense_format(values));
    return p.fixed && format.dense() &&
           backend.preferred_layout(format, shape_of(p)) != ops::WeightLayout::rows;
  };
  std::vector<Parameter*> waiting;
  source([&](Parameter& p) {
    if (p.placed()) return;
    if (!p.format && moves(p)) p.format = ops::dense_format(values);
    if (!p.format) return;
    check_format(backend, p);
    waiting.push_back(&p);
  });
  if (waiting.empty()) return;
  const auto cut = [&](Cutter cutter) {
    const auto take = [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); };
    for (Parameter* p : waiting) {
      const ops::Weight weight = ops::make_weight(shape_of(*p), *p->format, take);
      p->type = weight.dense() ? weight.codes.dtype() : values;
      if (weight.dense() && !moves(*p))
        p->value = weight.codes.reshape(p->shape);
      else
        p->packed = weight;
    }
    return cutter.size();
  };
  format_bytes_ = cut(Cutter());
  buffers_.emplace_back(backend, format_bytes_);
  cut(Cutter(buffers_.back().data()));
}

int64_t ParameterStore::value_bytes() const {
  int64_t bytes = format_bytes_;
  for (const Group& group : groups_) bytes += group.value.bytes();
  return bytes;
}

int64_t ParameterStore::gradient_bytes() const {
  int64_t bytes = 0;
  for (const Group& group : groups_) bytes += group.grad.bytes();
  return bytes;
}

void ParameterStore::zero_gradients(Backend& backend) const {
  for (const Group& group : groups_)
    if (group.grad) backend.run(ops::Fill{.x = group.grad});
}

void PartWriter::write(const Parameter& p, const Parameter::Part& part,
                       const std::function<void(const Tensor&)>& fill) {
  if (!p.packed) {
    fill(p.value_of(part));
    return;
  }
  const int64_t columns = p.columns(), elements = part.shape.numel();
  CHECK(part.offset % columns == 0 && elements % columns == 0, part.name);
  const int64_t first = part.offset / columns, rows = elements / columns;
  const ops::Weight place = p.packed.slice_rows(first, first + rows);
  if (place.dense()) {
    fill(place.tensor().reshape(part.shape));
    return;
  }
  const int64_t bytes = elements * size_of(p.type);
  if (staging_.bytes() < bytes) {
    staging_ = Buffer();  // given back first: there may not be room for both
    staging_ = Buffer(backend_, bytes);
  }
  fill(staging_.tensor(part.shape, p.type));
  backend_.run(ops::Quantize{.x = staging_.tensor({rows, columns}, p.type), .weight = place});
}

void PartWriter::copy(const Parameter& p, const Parameter::Part& part, const ops::Weight& host) {
  CHECK(p.packed && host.format == p.packed.format && host.layout == ops::WeightLayout::rows,
        part.name);
  const int64_t columns = p.columns(), first = part.offset / columns;
  CHECK(part.offset % columns == 0 && host.shape.numel() == part.shape.numel(), part.name);
  const ops::Weight device = p.packed.slice_rows(first, first + host.rows());
  for (const auto piece : ops::kWeightPieces)
    if (device.*piece) backend_.upload(host.*piece, device.*piece);
}

void initialise(Backend& backend, const ParameterSource& source, const Initialisation& how) {
  use_plain_rows(backend, source);
  PartWriter writer(backend);
  source([&](const Parameter& p) {
    for (const auto& part : p.parts) {
      writer.write(p, part, [&](const Tensor& value) {
        auto normal = [&](double deviation) {
          backend.run(ops::RandomNormal{.x = value,
                                        .seed = how.seed,
                                        .stream = name_hash(part.name),
                                        .deviation = deviation});
        };
        switch (p.role) {
          case Role::norm:
            backend.run(ops::Fill{.x = value, .value = 1});
            break;
          case Role::lora_b:
            backend.run(ops::Fill{.x = value, .value = 0});
            break;
          case Role::lora_a:
            normal(1 / std::sqrt(static_cast<double>(part.shape[part.shape.rank() - 1])));
            break;
          case Role::embedding:
            normal(how.embedding_deviation);
            break;
          case Role::residual_projection:
            normal(how.residual_deviation);
            break;
          default:
            normal(how.deviation);
        }
      });
    }
  });
  use_preferred_layouts(backend, source);
}

}  // namespace mixtral::nn
