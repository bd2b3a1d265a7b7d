#include "convert/layer_inputs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mixtral {
namespace {

constexpr int64_t kSharedRows = 512;  // of other experts' tokens, at most

void copy(const Tensor& from, const Tensor& to) {
  std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
}

}  // namespace

LayerInputs::LayerInputs(Backend& backend, const TensorSource& source, const ModelConfig& config,
                         const HostBatch& text)
    : reader_(source, config),
      model_(backend, reader_),
      arena_(backend),
      ctx_(backend, arena_, Dtype::f32) {
  const int64_t n = text.size(), d = config.hidden_size, rows = n * config.experts_per_token;
  batch_ = upload(ctx_, text, config.vocab_size, config.max_positions);
  x_ = ctx_.allocate({n, d});
  norm_ = ctx_.allocate({n, d});
  attended_ = ctx_.allocate({n, config.num_heads * config.head_dim});
  expert_in_ = ctx_.allocate({rows, d});
  weights_ = ctx_.allocate({rows, 1}, ctx_.statistics());
  mark_ = arena_.mark();
  restart();
}

bool LayerInputs::has(TensorKind kind) {
  using enum TensorKind;
  switch (kind) {
    case query:
    case key:
    case value:
    case attention_output:
    case w1:
    case w2:
    case w3:
    case head:
      return true;
    default:
      return false;
  }
}

void LayerInputs::restart() {
  model_.embed(ctx_, batch_, x_);
  layer_ = -1;
}

void LayerInputs::note(const TensorId& id, const Tensor& x, const Tensor& weights) {
  if (id.kind == TensorKind::query) return copy(x, norm_);
  if (id.kind == TensorKind::attention_output) return copy(x, attended_);
  CHECK(id.kind == TensorKind::w1);
  const int64_t begin = starts_.back(), end = begin + x.dim(0);
  copy(x, expert_in_.slice(begin, end));
  copy(weights, weights_.slice(begin, end));
  // Experts that no token chose are left out of the call: their rows end where they begin.
  starts_.resize(static_cast<size_t>(id.expert) + 1, begin);
  starts_.push_back(end);
}

void LayerInputs::run_to(int64_t layer) {
  if (layer < layer_) restart();
  while (layer_ < layer) {
    ++layer_;
    starts_ = {0};
    model_.layer(ctx_, layer_, batch_, x_,
                 [this](const TensorId& id, const Tensor& x, const Tensor& weights) {
                   note(id, x, weights);
                 });
    starts_.resize(static_cast<size_t>(model_.config().num_experts) + 1, starts_.back());
  }
}

int64_t LayerInputs::tokens_of(int64_t expert) const {
  const auto e = static_cast<size_t>(expert);
  return starts_.at(e + 1) - starts_.at(e);
}

Tensor LayerInputs::expert_rows(const TensorId& id) {
  const int64_t begin = starts_.at(static_cast<size_t>(id.expert)), own = tokens_of(id.expert);
  const int64_t all = expert_in_.dim(0), others = all - own, d = expert_in_.dim(1);
  const int64_t shared = std::min(others, kSharedRows);
  const bool down = id.kind == TensorKind::w2;
  const Tensor rows = ctx_.allocate({own + shared, d});
  const Tensor weights = ctx_.allocate({own + shared, 1}, ctx_.statistics());
  copy(expert_in_.slice(begin, begin + own), rows.slice(0, own));
  copy(weights_.slice(begin, begin + own), weights.slice(0, own));
  for (int64_t i = 0; i < shared; ++i) {
    const int64_t other = i * others / shared, from = other < begin ? other : other + own;
    copy(expert_in_.slice(from, from + 1), rows.slice(own + i, own + i + 1));
    copy(weights_.slice(from, from + 1), weights.slice(own + i, own + i + 1));
  }
  const Tensor result =
      down ? model_.expert_hidden(ctx_, id.layer, id.expert, rows, weights) : rows;
  const float scale = std::sqrt(static_cast<float>(kSharedTokens) /
                                static_cast<float>(std::max<int64_t>(1, shared)));
  for (float& value : result.slice(own, own + shared).span<float>()) value *= std::min(1.f, scale);
  return result;
}

Tensor LayerInputs::rows(const TensorId& id) {
  using enum TensorKind;
  CHECK(has(id.kind));
  arena_.rewind(mark_);
  if (id.kind == head) {
    run_to(model_.config().num_layers - 1);
    const Tensor y = ctx_.allocate(x_.shape());
    model_.final_norm(ctx_, x_, y);
    return y;
  }
  run_to(id.layer);
  if (id.kind == attention_output) return attended_;
  if (id.kind == query || id.kind == key || id.kind == value) return norm_;
  return expert_rows(id);
}

}  // namespace mixtral
