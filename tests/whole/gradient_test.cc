// Central differences through a whole tiny model in f64, on the reference backend: every kind of
// parameter, every term of the objective, with and without recomputation.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "base/random.h"
#include "model/loss.h"

namespace mixtral {
namespace {

struct Case {
  const char* name;
  int64_t heads, kv_heads, head_dim, experts, top_k, window;
  bool tied;
  Objective objective;
};

class WholeGradient : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    ModelConfig config;
    config.vocab_size = 19;
    config.hidden_size = 12;
    config.intermediate_size = 10;
    config.num_layers = 2;
    config.num_heads = c.heads;
    config.num_kv_heads = c.kv_heads;
    config.head_dim = c.head_dim;
    config.num_experts = c.experts;
    config.experts_per_token = c.top_k;
    config.max_positions = 32;
    config.rope_theta = 100;
    config.sliding_window = c.window;
    config.tie_embeddings = c.tied;
    backend_ = make_backend("ref");
    arena_ = std::make_unique<Arena>(*backend_);
    ctx_ = std::make_unique<Context>(*backend_, *arena_, Dtype::f64);
    model_ = std::make_unique<Mixtral>(
        *backend_, config,
        Mixtral::Options{.weights = Dtype::f64, .compute = Dtype::f64, .trainable = true});
    nn::initialise(
        *backend_, model_->parameters(),
        {.seed = kSeed, .deviation = 0.4, .residual_deviation = 0.4, .embedding_deviation = 1});
    RandomStream random(kSeed, 1);
    for (const int length : {7, 1, 5}) {
      std::vector<int32_t> tokens, labels;
      for (int i = 0; i < length; ++i) {
        tokens.push_back(static_cast<int32_t>(random.below(19)));
        labels.push_back(random.uniform() < 0.2 ? ops::kIgnoredLabel : tokens.back());
      }
      host_.append(tokens, labels);
    }
  }

  double loss(bool gradients, bool recompute) {
    const ArenaScope scope(*arena_);
    const LossTotals totals = LossTotals::allocate(*ctx_);
    const Batch batch = upload(*ctx_, host_, 19, 32);
    const Tensor scale = ctx_->allocate({1}, Dtype::f64);
    ctx_->run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(host_.label_count())});
    if (gradients) {
      model_->store().zero_gradients(*backend_);
      accumulate_gradients(*ctx_, *model_, batch, GetParam().objective,
                           {.label_scale = scale, .recompute = recompute}, totals, nullptr);
    } else {
      accumulate_losses(*ctx_, *model_, batch, GetParam().objective, 1, totals, nullptr);
    }
    return read(*ctx_, totals, GetParam().objective, host_.label_count()).total;
  }

  static constexpr uint64_t kSeed = 20;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Mixtral> model_;
  HostBatch host_;
};

TEST_P(WholeGradient, AgreesWithCentralDifferences) {
  const double with_gradients = loss(true, false);
  EXPECT_NEAR(with_gradients, loss(false, false), 1e-12);
  std::vector<std::vector<double>> gradients;
  model_->for_each_parameter([&](nn::Parameter& p) {
    const auto span = p.grad.span<double>();
    gradients.emplace_back(span.begin(), span.end());
  });

  loss(true, true);
  size_t index = 0;
  model_->for_each_parameter([&](nn::Parameter& p) {
    const auto span = p.grad.span<double>();
    EXPECT_EQ(std::vector<double>(span.begin(), span.end()), gradients[index++])
        << "recomputing changes " << p.parts[0].name;
  });

  constexpr double kStep = 1e-5;
  RandomStream random(kSeed, 2);
  index = 0;
  model_->for_each_parameter([&](nn::Parameter& p) {
    const auto value = p.value.span<double>();
    const auto& gradient = gradients[index++];
    double largest = 1e-3;
    for (const double g : gradient) largest = std::max(largest, std::abs(g));
    for (int probe = 0; probe < 24; ++probe) {
      const size_t i = random.below(value.size());
      const double before = value[i];
      value[i] = before + kStep;
      const double up = loss(false, false);
      value[i] = before - kStep;
      const double down = loss(false, false);
      value[i] = before;
      EXPECT_LE(std::abs((up - down) / (2 * kStep) - gradient[i]) / largest, 1e-6)
          << p.parts[0].name << " element " << i << ", seed " << kSeed;
    }
  });
}

const Objective kAll{
    .balance = Objective::Balance::per_layer, .aux_coefficient = 0.1, .z_coefficient = 0.05};
const Objective kPooled{
    .balance = Objective::Balance::hf, .aux_coefficient = 0.1, .z_coefficient = 0};
const Objective kPlain{
    .balance = Objective::Balance::off, .aux_coefficient = 0, .z_coefficient = 0};

INSTANTIATE_TEST_SUITE_P(All, WholeGradient,
                         ::testing::Values(Case{"gqa", 4, 2, 4, 4, 2, 0, false, kAll},
                                           Case{"one_expert", 2, 2, 6, 1, 1, 0, false, kAll},
                                           Case{"many_experts", 2, 1, 8, 9, 4, 0, true, kPooled},
                                           Case{"window_one", 2, 2, 6, 5, 1, 1, false, kPlain},
                                           Case{"window_three", 4, 1, 2, 5, 3, 3, false, kPooled}),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace mixtral
