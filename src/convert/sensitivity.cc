#include "convert/sensitivity.h"

#include <algorithm>
#include <vector>

#include "convert/group_pack.h"

namespace mixtral {
namespace {

using enum TensorKind;

constexpr int kGroup = 32;              // columns
constexpr int64_t kProductRows = 1024;  // of products

struct Products {
  double error = 0, size = 0;  // sums of squares
};

double squares(const Tensor& x) {
  double sum = 0;
  for (const float value : x.span<float>())
    sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

class Surveyor {
 public:
  Surveyor(Backend& backend, ThreadPool& threads, const TensorSource& source,
           const ModelConfig& config, const HostBatch& text)
      : threads_(threads),
        config_(config),
        reader_(source, config),
        inputs_(backend, source, config, text) {}

  Sensitivity run() {
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      attention(layer);
      experts(layer);
    }
    if (!config_.tie_embeddings) {
      const Products head = measure({.kind = TensorKind::head});
      note({.kind = TensorKind::head}, head.error / head.size);
    }
    return std::move(result_);
  }

 private:
  void attention(int64_t layer) {
    std::map<TensorKind, Products> found;
    for (const TensorKind kind : {query, key, value, attention_output})
      found[kind] = measure({.kind = kind, .layer = layer});
    const double branch = found[attention_output].size / residual();
    for (const auto& [kind, products] : found)
      note({.kind = kind, .layer = layer}, products.error / products.size * branch);
  }

  void experts(int64_t layer) {
    std::map<TensorKind, double> sizes;
    std::map<TensorId, Products> found;
    for (int64_t e = 0; e < config_.num_experts; ++e) {
      for (const TensorKind kind : {w1, w2, w3}) {
        const TensorId id{.kind = kind, .layer = layer, .expert = e};
        found[id] = measure(id);
        sizes[kind] += found[id].size;
        if (kind == w1) result_.tokens[id] = inputs_.tokens_of(e);
      }
    }
    const double branch = sizes[w2] / residual();
    for (const auto& [id, products] : found) note(id, products.error / sizes[id.kind] * branch);
  }

  double residual() { return squares(inputs_.residual()); }

  /// Nothing is lost in a matrix whose products are all 0.
  void note(const TensorId& id, double noise) { result_.noise[id] = noise > 0 ? noise : 0; }

  Products measure(const TensorId& id) {
    Tensor x = inputs_.rows(id);
    if (id.expert >= 0) x = x.slice(0, inputs_.tokens_of(id.expert));
    Context& ctx = inputs_.context();
    const ArenaScope scope(ctx.arena());
    const Tensor values = reader_.values(id, Dtype::f32);
    const Tensor error = ctx.allocate(values.shape());
    rounding_error(values, error);
    Products products;
    for (int64_t begin = 0; begin < x.dim(0); begin += kProductRows) {
      const ArenaScope rows_scope(ctx.arena());
      const Tensor rows = x.slice(begin, std::min(begin + kProductRows, x.dim(0)));
      const Tensor y = ctx.allocate({rows.dim(0), values.dim(0)});
      for (const auto& [weight, sum] :
           {std::pair(values, &products.size), std::pair(error, &products.error)}) {
        ctx.run(ops::GroupedMatmul{.x = rows, .weight = weight, .offsets = {}, .y = y});
        *sum += squares(y);
      }
    }
    return products;
  }

  /// What rounding in groups changes. The last columns of a row that are no whole group count as
  /// kept.
  void rounding_error(const Tensor& values, const Tensor& error) {
    const auto columns = static_cast<size_t>(values.dim(1)), whole = columns / kGroup * kGroup;
    threads_.for_ranges(values.dim(0), 16, [&](int64_t begin, int64_t end) {
      std::vector<float> packed(columns), scales(whole / kGroup), biases(whole / kGroup);
      std::vector<int32_t> codes(whole * kSurveyBits / 32);
      for (int64_t row = begin; row < end; ++row) {
        const std::span from = values[row].span<float>(), to = error[row].span<float>();
        std::ranges::copy(from, packed.begin());
        pack_group_row(from.first(whole),
                       {.bits = kSurveyBits,
                        .group = kGroup,
                        .codes = codes.data(),
                        .scales = reinterpret_cast<std::byte*>(scales.data()),
                        .biases = reinterpret_cast<std::byte*>(biases.data())},
                       std::span(packed).first(whole));
        for (size_t i = 0; i < columns; ++i) to[i] = packed[i] - from[i];
      }
    });
  }

  ThreadPool& threads_;
  const ModelConfig& config_;
  PartReader reader_;
  LayerInputs inputs_;
  Sensitivity result_;
};

}  // namespace

double Sensitivity::total() const {
  double sum = 0;
  for (const auto& [id, share] : noise) sum += share;
  return sum;
}

Sensitivity survey(Backend& backend, ThreadPool& threads, const TensorSource& source,
                   const ModelConfig& config, const HostBatch& text) {
  return Surveyor(backend, threads, source, config, text).run();
}

}  // namespace mixtral
