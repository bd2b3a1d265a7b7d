#include "model/host_experts.h"

#include <algorithm>
#include <set>

#include "base/threads.h"
#include "model/load_parameters.h"
#include "nn/layout.h"
#include "tensor/cutter.h"

namespace mixtral {
namespace {

using nn::Parameter;

constexpr int64_t kTouchedAtOnce = int64_t{64} << 20, kLeastPage = 4096;

nn::ParameterSource parameters_of(std::vector<Parameter>& parameters) {
  return [&parameters](const nn::ParameterVisitor& visit) {
    for (Parameter& p : parameters) visit(p);
  };
}

/// Has the system give all pages of a buffer their memory, by all threads.
void touch_pages(ThreadPool& pool, const Buffer& buffer) {
  const int64_t chunks = (buffer.bytes() + kTouchedAtOnce - 1) / kTouchedAtOnce;
  auto* const bytes = static_cast<volatile char*>(buffer.data());
  pool.for_each(chunks, [&](int64_t chunk, int) {
    const int64_t end = std::min(buffer.bytes(), (chunk + 1) * kTouchedAtOnce);
    for (int64_t at = chunk * kTouchedAtOnce; at < end; at += kLeastPage) bytes[at] = 0;
  });
}

}  // namespace

HostExperts::HostExperts(Backend& backend, Mixtral& model)
    : backend_(backend),
      sizes_(expert_sizes(model)),
      bytes_(static_cast<size_t>(sizes_.layers)),
      filled_(backend.make_fence()),
      lane_(backend.make_copy_lane()) {
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    Cutter cutter;
    cut_expert(streamed, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); });
    bytes_[static_cast<size_t>(streamed.layer())][static_cast<size_t>(streamed.product())] =
        cutter.size();
  });
  ThreadPool pool;
  for (const auto& [gate_up, down] : bytes_) {
    memory_.emplace_back(host_memory(), sizes_.experts * (gate_up + down));
    touch_pages(pool, memory_.back());
    locked_.push_back(backend.lock_pages(memory_.back().data(), memory_.back().bytes()));
  }
}

std::byte* HostExperts::data(int64_t layer, nn::ExpertProduct product, int64_t expert) const {
  const auto l = static_cast<size_t>(layer);
  const int64_t before = product == nn::ExpertProduct::gate_up ? 0 : sizes_.experts * bytes_[l][0];
  return static_cast<std::byte*>(memory_[l].data()) + before + expert * bytes(layer, product);
}

int64_t HostExperts::bytes(int64_t layer, nn::ExpertProduct product) const {
  return bytes_[static_cast<size_t>(layer)][static_cast<size_t>(product)];
}

std::vector<Parameter> HostExperts::parameters(const nn::StreamedExperts& streamed, int64_t expert,
                                               void* data) {
  Cutter cutter(data);
  const std::vector<ops::Weight> weights =
      cut_expert(streamed, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); });
  std::vector<Parameter> ones;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Parameter& all = streamed.parameters()[i];
    Parameter one;
    one.shape = weights[i].shape;
    one.role = all.role;
    one.trainable = false;
    one.format = all.format;
    one.type = all.type;
    if (weights[i].dense())
      one.value = weights[i].codes.reshape(one.shape);
    else
      one.packed = weights[i];
    const int64_t elements = one.shape.numel(), first = expert * elements;
    for (const Parameter::Part& part : all.parts)
      if (part.offset >= first && part.offset < first + elements)
        one.parts.push_back({part.name, part.offset - first, part.shape, part.order});
    ones.push_back(std::move(one));
  }
  return ones;
}

void HostExperts::fill_by_device(const nn::StreamedExperts& streamed, int64_t expert,
                                 const std::function<void(std::vector<Parameter>&)>& fill) {
  const int64_t size = bytes(streamed.layer(), streamed.product());
  if (room_.bytes() < size) {
    room_ = Buffer();
    room_ = Buffer(backend_, size);
  }
  std::vector<Parameter> ones = parameters(streamed, expert, room_.data());
  fill(ones);
  filled_->set();
  lane_->to_host(room_.data(), data(streamed.layer(), streamed.product(), expert), size, *filled_);
}

void HostExperts::load(Mixtral& model, const TensorSource& tensors) {
  struct Product {
    const nn::StreamedExperts* streamed;
    int64_t expert;
    std::vector<Parameter> parameters;
  };
  std::vector<Product> products;
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    for (int64_t e = 0; e < sizes_.experts; ++e)
      products.push_back(
          {&streamed, e, parameters(streamed, e, data(streamed.layer(), streamed.product(), e))});
  });
  const auto source = [&](const nn::ParameterVisitor& visit) {
    for (Product& product : products)
      for (Parameter& p : product.parameters) visit(p);
  };
  const std::vector<Parameter*> left =
      load_in_memory(source, model.config(), tensors, [&](const Parameter& p) {
        return backend_.preferred_layout(p.packed.format, p.packed.shape);
      });
  const std::set<const Parameter*> others(left.begin(), left.end());
  for (Product& product : products) {
    const auto is_left = [&](const Parameter& p) { return others.contains(&p); };
    if (std::ranges::none_of(product.parameters, is_left)) continue;
    fill_by_device(*product.streamed, product.expert, [&](std::vector<Parameter>& ones) {
      std::vector<Parameter*> all;
      all.reserve(ones.size());
      for (Parameter& one : ones) all.push_back(&one);
      load_one_by_one(backend_, all, model.config(), tensors);
      nn::use_preferred_layouts(backend_, parameters_of(ones));
    });
  }
  room_ = Buffer();
}

void HostExperts::draw(Mixtral& model, const nn::Initialisation& how) {
  for_each_streamed(model, [&](nn::StreamedExperts& streamed) {
    for (int64_t e = 0; e < sizes_.experts; ++e)
      fill_by_device(streamed, e, [&](std::vector<Parameter>& ones) {
        nn::initialise(backend_, parameters_of(ones), how);
      });
  });
  room_ = Buffer();
}

}  // namespace mixtral
