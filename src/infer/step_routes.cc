#include "infer/step_routes.h"

#include <algorithm>
#include <cmath>

#include "tensor/cutter.h"

namespace mixtral {

StepRoutes::StepRoutes(Context& ctx, const ModelConfig& config, int64_t most)
    : ctx_(ctx),
      layers_(config.num_layers),
      experts_(config.num_experts),
      per_token_(config.experts_per_token),
      most_(most) {
  Mixtral::RouterReports none;
  const int64_t bytes = cut(nullptr, most, none);
  device_buffer_ = Buffer(ctx.backend(), bytes);
  host_buffer_ = Buffer(host_memory(), bytes);
}

int64_t StepRoutes::cut(void* base, int64_t tokens, Mixtral::RouterReports& reports) const {
  Cutter cutter(base);
  reports.expert = cutter.take({layers_, tokens, per_token_}, Dtype::i32);
  reports.logits = cutter.take({layers_, tokens, experts_}, ctx_.statistics());
  return cutter.size();
}

const Mixtral::RouterReports* StepRoutes::prepare(int64_t tokens) {
  CHECK(tokens <= most_);
  tokens_ = tokens;
  bytes_ = cut(device_buffer_.data(), tokens, device_);
  cut(host_buffer_.data(), tokens, host_);
  return &device_;
}

void StepRoutes::read() {
  ctx_.backend().download(Tensor(device_buffer_.data(), {bytes_}, Dtype::u8),
                          Tensor(host_buffer_.data(), {bytes_}, Dtype::u8));
}

void StepRoutes::add_to(ExpertLoad& load) const {
  const int32_t* expert = host_.expert.as<int32_t>();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    int64_t* taken = load.taken.data() + layer * experts_;
    for (int64_t i = 0; i < tokens_ * per_token_; ++i, ++expert)
      if (*expert >= 0) ++taken[*expert];
  }
  const int32_t* first = host_.expert.as<int32_t>();
  for (int64_t n = 0; n < tokens_; ++n) load.tokens += first[n * per_token_] >= 0;
}

TokenRoutes StepRoutes::of(int64_t token) const {
  CHECK(token < tokens_);
  TokenRoutes routes;
  const auto logit = [&](int64_t layer, int32_t expert) {
    const int64_t index = (layer * tokens_ + token) * experts_ + expert;
    return host_.logits.dtype() == Dtype::f64
               ? host_.logits.as<double>()[index]
               : static_cast<double>(host_.logits.as<float>()[index]);
  };
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const int32_t* expert = host_.expert.as<int32_t>() + (layer * tokens_ + token) * per_token_;
    const double largest = logit(layer, expert[0]);
    double sum = 0;
    for (int64_t j = 0; j < per_token_; ++j) sum += std::exp(logit(layer, expert[j]) - largest);
    for (int64_t j = 0; j < per_token_; ++j) {
      routes.expert.push_back(expert[j]);
      routes.weight.push_back(
          static_cast<float>(std::exp(logit(layer, expert[j]) - largest) / sum));
    }
  }
  return routes;
}

}  // namespace mixtral
