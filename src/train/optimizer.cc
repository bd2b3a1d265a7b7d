#include "train/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/advice.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"

namespace mixtral {
namespace {

/// The element of `group` at which `part` starts.
int64_t element_offset(const Tensor& group, const Tensor& part) {
  const auto distance = static_cast<const char*>(part.data()) - static_cast<char*>(group.data());
  return distance / size_of(group.dtype());
}

bool lies_in(const Tensor& part, const Tensor& group) {
  const auto* begin = static_cast<const char*>(group.data());
  const auto* data = static_cast<const char*>(part.data());
  return data >= begin && data < begin + group.bytes();
}

}  // namespace

void OptimizerSettings::validate() const {
  auto require = [](bool good, std::string_view setting, std::string_view expected, double found) {
    if (!good)
      throw AdvisedUsageError(fmt::format("{}: expected {}, found {}", setting, expected, found));
  };
  require(beta1 >= 0 && beta1 < 1, "‹beta1›", "0 or more and less than 1", beta1);
  require(beta2 >= 0 && beta2 < 1, "‹beta2›", "0 or more and less than 1", beta2);
  require(std::isfinite(eps) && eps > 0, "‹adam-eps›", "a number above 0", eps);
  require(std::isfinite(weight_decay) && weight_decay >= 0, "‹weight-decay›", "0 or more",
          weight_decay);
  require(std::isfinite(clip) && clip >= 0, "‹grad-clip›", "0 (off) or more", clip);
}

Optimizer::Optimizer(Backend& backend, const std::vector<nn::ParameterStore::Group>& groups,
                     const OptimizerSettings& settings)
    : settings_(settings) {
  auto allocate = [&](Shape shape, Dtype dtype) {
    buffers_.emplace_back(backend, shape.numel() * size_of(dtype));
    return buffers_.back().tensor(shape, dtype);
  };
  for (const auto& group : groups) {
    if (!group.trainable) continue;
    const Dtype values = group.value.dtype();
    CHECK(values == Dtype::f64 || values == Dtype::f32 || values == Dtype::bf16);
    Trained trained{.group = group};
    if (values == Dtype::bf16) trained.master = allocate(group.value.shape(), Dtype::f32);
    const Dtype state = settings.bf16_state ? Dtype::bf16 : weights(trained).dtype();
    for (Tensor* moment : {&trained.m, &trained.v}) {
      *moment = allocate(group.value.shape(), state);
      backend.run(ops::Fill{.x = *moment});
    }
    trained_.push_back(trained);
  }
  schedule_ = allocate({4}, Dtype::f64);
  refresh_masters(backend);
}

void Optimizer::refresh_masters(Backend& backend) const {
  for (const Trained& t : trained_)
    if (t.master) backend.run(ops::Convert{.x = t.group.value, .y = t.master});
}

void Optimizer::step(Context& ctx, double lr, const Tensor& squared_norm) {
  auto schedule = next_schedule(lr);
  ctx.backend().upload(Tensor(schedule.data(), {4}, Dtype::f64), schedule_);
  update(ctx, schedule_, squared_norm, Clear::all);
  count_step();
}

std::array<double, 4> Optimizer::next_schedule(double lr) const {
  const auto t = static_cast<double>(steps_ + 1);
  return {lr, 1 - std::pow(settings_.beta1, t), 1 - std::pow(settings_.beta2, t), t};
}

void Optimizer::update(Context& ctx, const Tensor& schedule, const Tensor& squared_norm,
                       Clear clear) const {
  bool accumulate = false;
  for (const Trained& trained : trained_) {
    ctx.run(
        ops::SquaredNorm{.x = trained.group.grad, .sum = squared_norm, .accumulate = accumulate});
    accumulate = true;
  }
  uint64_t seed = settings_.seed;
  for (const Trained& trained : trained_) {
    ctx.run(ops::AdamW{.value = weights(trained),
                       .grad = trained.group.grad,
                       .m = trained.m,
                       .v = trained.v,
                       .model = trained.master ? trained.group.value : Tensor(),
                       .schedule = schedule,
                       .squared_norm = squared_norm,
                       .beta1 = settings_.beta1,
                       .beta2 = settings_.beta2,
                       .eps = settings_.eps,
                       .weight_decay = trained.group.decay ? settings_.weight_decay : 0,
                       .clip = settings_.clip,
                       .seed = seed++});
    const Tensor& grad = trained.group.grad;
    const int64_t kept = clear == Clear::all ? 0 : trained.group.one_product;
    if (kept < grad.numel()) ctx.run(ops::Fill{.x = grad.slice(kept, grad.numel())});
  }
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const Trained& t : trained_) bytes += t.m.bytes() + t.v.bytes() + t.master.bytes();
  return bytes;
}

bool Optimizer::values_are_finite(Context& ctx) const {
  const ArenaScope scope(ctx.arena());
  const Tensor sum = ctx.allocate({1}, Dtype::f64);
  bool accumulate = false;
  for (const Trained& trained : trained_) {
    ctx.run(ops::SquaredNorm{.x = weights(trained), .sum = sum, .accumulate = accumulate});
    accumulate = true;
  }
  double squares = 0;
  if (accumulate) ctx.backend().download(sum, Tensor(&squares, {1}, Dtype::f64));
  return std::isfinite(squares);
}

void Optimizer::for_each_state(const nn::ParameterSource& parameters, const StateVisitor& visit,
                               Masters masters) const {
  parameters([&](nn::Parameter& p) {
    if (!p.grad) return;
    for (const Trained& t : trained_) {
      if (!lies_in(p.grad, t.group.grad)) continue;
      const int64_t start = element_offset(t.group.grad, p.grad);
      for (const auto& part : p.parts) {
        const int64_t offset = start + part.offset;
        visit("m." + part.name, t.m.view(offset, part.shape));
        visit("v." + part.name, t.v.view(offset, part.shape));
        if (t.master || (masters == Masters::and_f32_values && weights(t).dtype() == Dtype::f32))
          visit("master." + part.name, weights(t).view(offset, part.shape));
      }
    }
  });
}

FileChecksum Optimizer::save(Backend& backend, const nn::ParameterSource& parameters,
                             const std::filesystem::path& path) const {
  std::vector<PlannedTensor> plan;
  std::unordered_map<std::string, Tensor> states;
  int64_t most = 1;
  for_each_state(parameters, [&](const std::string& name, const Tensor& state) {
    plan.push_back({.name = name, .shape = state.shape(), .dtype = state.dtype()});
    states[name] = state;
    most = std::max(most, state.bytes());
  });
  const Buffer staging(host_memory(), most);
  return write_safetensors(path, std::move(plan), [&](const PlannedTensor& planned) {
    const Tensor host = staging.tensor(planned.shape, planned.dtype);
    backend.download(states.at(planned.name), host);
    return host;
  });
}

void Optimizer::load(Backend& backend, const nn::ParameterSource& parameters,
                     const std::filesystem::path& path, int64_t steps) {
  const SafetensorsFile file(path);
  const bool has_masters = std::ranges::any_of(file.entries(), [](const SafetensorsEntry& entry) {
    return entry.name.starts_with("master.");
  });
  const Masters masters = has_masters ? Masters::and_f32_values : Masters::own;
  // Everything is checked before anything changes.
  int64_t most = 1;
  const auto check = [&](const std::string& name, const Tensor& state) {
    if (!has_masters && name.starts_with("master."))
      throw AdvisedError(
          fmt::format("{}: there is no f32 copy of the weights, which this run keeps in bf16; the "
                      "run kept them in f32: resume with ‹dtype fp32›, or on the device it ran on",
                      path.string()));
    const SafetensorsEntry& entry = file.at(name);
    std::vector<int64_t> dims;
    dims.reserve(Shape::kMaxRank);
    for (int i = 0; i < state.rank(); ++i) dims.push_back(state.dim(i));
    if (entry.dims != dims || entry.dtype != state.dtype())
      throw Error(fmt::format(
          "{}: tensor {} is {} {}, but this run's optimizer keeps {} {}; resume with the flags the "
          "run was started with",
          path.string(), name, entry.type, entry.shape_text(), to_string(state.dtype()),
          state.shape().to_string()));
    most = std::max(most, state.bytes());
  };
  for_each_state(parameters, check, masters);
  const Buffer staging(host_memory(), most);
  const auto read = [&](const std::string& name, const Tensor& state) {
    const Tensor host = staging.tensor(state.shape(), state.dtype());
    file.read_into(name, host);
    backend.upload(host, state);
    backend.synchronize();  // the staging area is used again
  };
  for_each_state(parameters, read, masters);
  steps_ = steps;
}

}  // namespace mixtral
