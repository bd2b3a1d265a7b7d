#include "nn/parameter.h"

#include <cmath>
#include <utility>
#include <vector>

#include "tensor/cutter.h"

namespace mixtral::nn {
namespace {

constexpr int64_t kAlignment =
    64;  // elements between parameters of a group: whole vectors and tiles

int64_t aligned(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

Shape rows_of(const Parameter& p, int64_t columns) {
  return {p.shape.numel() / p.columns(), columns};
}
Shape code_shape(const Parameter& p) {
  return rows_of(p, ops::code_bytes(*p.quantization, p.columns()));
}
Shape scale_shape(const Parameter& p) {
  return rows_of(p, ops::scale_count(*p.quantization, p.columns()));
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
  place_quantized(backend, source, values);
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
      // The gaps between parameters must hold numbers: the optimizer and the norm run over them.
      backend.run(ops::Fill{.x = group.value});
      if (trainable) {
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

void ParameterStore::place_quantized(Backend& backend, const ParameterSource& source,
                                     Dtype values) {
  std::vector<Parameter*> waiting;
  source([&](Parameter& p) {
    if (p.quantization && !p.placed()) waiting.push_back(&p);
  });
  if (waiting.empty()) return;
  auto cut = [&](Cutter cutter) {
    for (Parameter* p : waiting) {
      CHECK(!p->trainable, "a quantized parameter cannot be trained");
      p->type = values;
      p->codes = cutter.take(code_shape(*p), Dtype::u8);
      p->scales = cutter.take(scale_shape(*p), Dtype::f32);
    }
    return cutter.size();
  };
  quantized_bytes_ = cut(Cutter());
  buffers_.emplace_back(backend, quantized_bytes_);
  cut(Cutter(buffers_.back().data()));
}

int64_t ParameterStore::value_bytes() const {
  int64_t bytes = quantized_bytes_;
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
  if (!p.quantization) {
    fill(p.value_of(part));
    return;
  }
  const int64_t columns = p.columns(), elements = part.shape.numel();
  CHECK(part.offset % columns == 0 && elements % columns == 0, part.name);
  const int64_t bytes = elements * size_of(p.type);
  if (staging_.bytes() < bytes) {
    staging_ = Buffer();  // given back first: there may not be room for both
    staging_ = Buffer(backend_, bytes);
  }
  fill(staging_.tensor(part.shape, p.type));
  const int64_t first = part.offset / columns, rows = elements / columns;
  backend_.run(ops::Quantize{.x = staging_.tensor({rows, columns}, p.type),
                             .codes = p.codes.slice(first, first + rows),
                             .scales = p.scales.slice(first, first + rows),
                             .quantization = *p.quantization});
}

void initialise(Backend& backend, const ParameterSource& source, const Initialisation& how) {
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
}

}  // namespace mixtral::nn
