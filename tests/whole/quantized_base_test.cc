// The whole model on projections in few bits: an adapter's gradients, loading, and how far the
// logits move.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/registry.h"
#include "base/random.h"
#include "model/adapter.h"
#include "model/checkpoint.h"
#include "model/loss.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "tests/support/models.h"

namespace mixtral {
namespace ops {

void PrintTo(const WeightFormat& format, std::ostream* out) { *out << format.name(); }

}  // namespace ops

namespace {

using ops::WeightFormat;
using testing::read_values;

class QuantizedBase : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(QuantizedBase, AdaptersGradientsAgreeWithCentralDifferences) {
  const uint64_t seed = 20;
  const auto backend = make_backend("ref");
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f64);
  const ModelConfig config = testing::minimal_config();
  Mixtral model(*backend, config,
                {.weights = Dtype::f64, .compute = Dtype::f64, .quantization = GetParam()});
  nn::initialise(*backend, model.parameters(), {.seed = seed, .deviation = 0.3});
  Adapter adapter(
      *backend, model,
      new_adapter({.targets = {"q_proj", "v_proj", "o_proj", "w1", "w2", "gate"}, .rank = 2},
                  config),
      {.trainable = true, .seed = seed});
  RandomStream random(seed, 1);
  adapter.parameters()([&](const nn::Parameter& p) {
    for (double& value : p.value.span<double>()) value += 0.1 * random.normal();
  });
  HostBatch host;
  for (const int64_t length : {9, 4}) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>(random.below(32)));
    host.append(tokens);
  }
  const Objective objective;
  auto loss = [&](bool gradients) {
    const ArenaScope scope(arena);
    const LossTotals totals = LossTotals::allocate(ctx);
    const Batch batch = upload(ctx, host, config.vocab_size, model.context());
    const Tensor scale = ctx.allocate({1}, Dtype::f64);
    ctx.run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(host.label_count())});
    if (gradients)
      accumulate_gradients(ctx, model, batch, objective, {.label_scale = scale}, totals, nullptr);
    else
      accumulate_losses(ctx, model, batch, objective, 1, totals, nullptr);
    return read(ctx, totals, objective, host.label_count()).total;
  };
  EXPECT_NEAR(loss(true), loss(false), 1e-12);
  constexpr double kStep = 1e-5;
  adapter.parameters()([&](const nn::Parameter& p) {
    const auto value = p.value.span<double>(), gradient = p.grad.span<double>();
    for (int probe = 0; probe < 3; ++probe) {
      const size_t i = random.below(value.size());
      const double before = value[i];
      value[i] = before + kStep;
      const double above = loss(false);
      value[i] = before - kStep;
      const double below = loss(false);
      value[i] = before;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-6)
          << p.parts.front().name << " [" << i << "], seed " << seed;
    }
  });
}

/// Codes and scales of every quantized parameter, in order.
std::vector<std::vector<uint8_t>> rounded_bytes(Backend& backend, Mixtral& model) {
  std::vector<std::vector<uint8_t>> all;
  model.for_each_parameter([&](const nn::Parameter& p) {
    for (const Tensor& tensor : {p.packed.codes, p.packed.scales}) {
      if (!tensor) continue;
      auto& bytes = all.emplace_back(static_cast<size_t>(tensor.bytes()));
      backend.download(tensor, Tensor(bytes.data(), tensor.shape(), tensor.dtype()));
    }
  });
  return all;
}

TEST_P(QuantizedBase, LoadedItIsTheFilesWeightsRoundedAndTheRestAsItWas) {
  TemporaryDirectory scratch;
  const auto backend = make_backend("cpu", 1);
  const ModelConfig config = testing::uneven_config();
  Mixtral whole(*backend, config, {});
  nn::initialise(*backend, whole.parameters(), {.seed = 4, .deviation = 0.1});
  save_model(*backend, whole, scratch.path(), Dtype::f32);
  const auto loaded = load_model(*backend, scratch.path(), {.quantization = GetParam()});
  Mixtral drawn(*backend, config, {.quantization = GetParam()});
  nn::initialise(*backend, drawn.parameters(), {.seed = 4, .deviation = 0.1});
  const auto bytes = rounded_bytes(*backend, *loaded);
  EXPECT_EQ(bytes.size(), 2u * 4u * static_cast<size_t>(config.num_layers));
  EXPECT_EQ(bytes, rounded_bytes(*backend, drawn));
  EXPECT_LT(loaded->store().value_bytes(), whole.store().value_bytes());
  // Embedding, norms, routers and head are not rounded.
  std::map<std::string, std::vector<float>> values;
  whole.for_each_parameter([&](const nn::Parameter& p) {
    const auto span = p.value.span<float>();
    values[p.parts.front().name] = {span.begin(), span.end()};
  });
  int exact = 0;
  loaded->for_each_parameter([&](const nn::Parameter& p) {
    if (p.packed) return;
    const auto span = p.value.span<float>();
    EXPECT_EQ(std::vector<float>(span.begin(), span.end()), values.at(p.parts.front().name));
    ++exact;
  });
  EXPECT_EQ(exact, 3 + 3 * config.num_layers);
}

struct FixtureCase {
  std::string device, model;
  WeightFormat quantization;
  double most;  // the logits' error, by their largest
  friend void PrintTo(const FixtureCase& c, std::ostream* out) {
    *out << c.device << " " << c.model << " " << c.quantization.name();
  }
};
class QuantizedFixture : public ::testing::TestWithParam<FixtureCase> {};

TEST_P(QuantizedFixture, LogitsStayNear) {
  const FixtureCase& c = GetParam();
  if (!testing::have_fixture(c.model))
    GTEST_SKIP() << "no reference results at " << testing::fixture(c.model);
  if (!testing::have_device(c.device)) GTEST_SKIP() << "no GPU";
  const auto directory = testing::fixture(c.model);
  const auto backend = make_backend(c.device, 2);
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  const auto model = load_model(*backend, directory, {.quantization = c.quantization});
  const HostBatch host = testing::read_batch(directory / "data.jsonl");
  const Batch batch = upload(ctx, host, model->config().vocab_size, model->context());
  const Tensor hidden = model->forward(ctx, batch, nullptr, nullptr, nullptr);
  const Tensor logits = ctx.allocate({hidden.dim(0), model->config().vocab_size}, Dtype::f32);
  model->logits(ctx, hidden, logits);
  std::vector<float> values(static_cast<size_t>(logits.numel()));
  backend->download(logits, Tensor(values.data(), logits.shape(), Dtype::f32));
  const auto expected = read_values(SafetensorsFile(directory / "expected.safetensors"), "logits");
  ASSERT_EQ(values.size(), expected.size());
  double squares = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += std::pow(static_cast<double>(values[i]) - expected[i], 2);
    size += expected[i] * expected[i];
  }
  const double error = std::sqrt(squares / size);
  fmt::print("{} {} on {}: the logits' relative error is {:.4f}\n", c.model, c.quantization.name(),
             c.device, error);
  EXPECT_GT(error, 1e-4);
  EXPECT_LT(error, c.most);
}

std::vector<FixtureCase> fixture_cases() {
  std::vector<FixtureCase> cases;
  for (const char* device : {"ref", "cpu", "cuda"})
    for (const char* model : {"gqa", "mha8x2"})
      for (const auto& [q, most] : {std::pair{WeightFormat::fp8, 0.2}, {WeightFormat::nf4, 0.4}})
        cases.push_back({device, model, q, most});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedBase,
                         ::testing::Values(WeightFormat::fp8, WeightFormat::nf4),
                         [](const auto& tested) { return std::string(tested.param.name()); });
INSTANTIATE_TEST_SUITE_P(All, QuantizedFixture, ::testing::ValuesIn(fixture_cases()),
                         [](const auto& tested) {
                           return fmt::format("{}_{}_{}", tested.param.device, tested.param.model,
                                              tested.param.quantization.name());
                         });

}  // namespace
}  // namespace mixtral
