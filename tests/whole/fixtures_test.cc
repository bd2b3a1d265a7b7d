// The whole model against Hugging Face transformers' results (tests/support/fixtures.h): logits,
// losses, gradients, greedy generation, and ten steps of AdamW.

#include "tests/support/fixtures.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "backends/registry.h"
#include "infer/methods.h"
#include "model/checkpoint.h"
#include "model/loss.h"
#include "train/optimizer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

using testing::read_values;
using testing::relative_error;

constexpr double kLogits = 2e-5, kGradients = 2e-4;  // of the fixtures' README

struct Case {
  std::string device, model;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.device << " " << c.model; }
};

class Fixture : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    directory_ = testing::fixture(GetParam().model);
    if (!fs::exists(directory_)) GTEST_SKIP() << "no reference results at " << directory_;
    if (!testing::have_device(GetParam().device)) GTEST_SKIP() << "no GPU";
    backend_ = make_backend(GetParam().device, 2);
    arena_ = std::make_unique<Arena>(*backend_);
    ctx_ = std::make_unique<Context>(*backend_, *arena_, Dtype::f32);
    // The bf16 case was computed from a model that was cast in memory, RoPE frequencies included;
    // transformers itself, loading these files, gives what the default gives.
    const Dtype frequencies = GetParam().model == "sharded" ? Dtype::bf16 : Dtype::f32;
    model_ =
        load_model(*backend_, directory_, {.trainable = true, .rope_frequencies = frequencies});
    batch_ = testing::read_batch(directory_ / "data.jsonl");
    expected_ = std::make_unique<SafetensorsFile>(directory_ / "expected.safetensors");
    json_ = Json::load(directory_ / "expected.json");
  }

  Batch batch() { return upload(*ctx_, batch_, model_->config().vocab_size, model_->context()); }

  std::vector<double> host(const Tensor& device) {
    std::vector<float> values(static_cast<size_t>(device.numel()));
    backend_->download(device, Tensor(values.data(), device.shape(), Dtype::f32));
    return {values.begin(), values.end()};
  }

  LossValues gradients(const Objective& objective) {
    const ArenaScope scope(*arena_);
    model_->store().zero_gradients(*backend_);
    const LossTotals totals = LossTotals::allocate(*ctx_);
    const Tensor scale = ctx_->allocate({1}, Dtype::f32);
    ctx_->run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(batch_.label_count())});
    accumulate_gradients(*ctx_, *model_, batch(), objective,
                         {.label_scale = scale, .recompute = recompute_}, totals, nullptr);
    return read(*ctx_, totals, objective, batch_.label_count());
  }

  void expect_gradients(const std::string& prefix) {
    std::map<std::string, bool> seen;
    model_->for_each_parameter([&](nn::Parameter& p) {
      for (const auto& part : p.parts) {
        seen[prefix + part.name] = true;
        if (!expected_->find(prefix + part.name)) continue;
        EXPECT_LE(
            relative_error(host(p.grad_of(part)), read_values(*expected_, prefix + part.name)),
            kGradients)
            << prefix << part.name;
      }
    });
    int compared = 0;
    for (const auto& entry : expected_->entries()) {
      if (!entry.name.starts_with(prefix)) continue;
      EXPECT_TRUE(seen[entry.name]) << "not a parameter here: " << entry.name;
      ++compared;
    }
    EXPECT_GT(compared, 0);
  }

  std::filesystem::path directory_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Mixtral> model_;
  std::unique_ptr<SafetensorsFile> expected_;
  HostBatch batch_;
  Json json_ = Json::parse("{}", "");
  bool recompute_ = false;
};

TEST_P(Fixture, LogitsAgree) {
  const ArenaScope scope(*arena_);
  const Tensor hidden = model_->forward(*ctx_, batch(), nullptr, nullptr, nullptr);
  const Tensor logits = ctx_->allocate({hidden.dim(0), model_->config().vocab_size}, Dtype::f32);
  model_->logits(*ctx_, hidden, logits);
  EXPECT_LE(relative_error(host(logits), read_values(*expected_, "logits")), kLogits);
}

TEST_P(Fixture, RouterLogitsAgree) {
  const ArenaScope scope(*arena_);
  Mixtral::Saved saved;
  model_->forward(*ctx_, batch(), nullptr, &saved, nullptr);
  for (size_t i = 0; i < saved.blocks.size(); ++i) {
    EXPECT_LE(relative_error(host(saved.blocks[i].experts.logits),
                             read_values(*expected_, fmt::format("router_logits.{}", i))),
              kLogits)
        << "layer " << i;
  }
}

TEST_P(Fixture, LossesAndGradientsAgree) {
  for (const bool recompute : {false, true}) {
    recompute_ = recompute;
    const Objective objective{.balance = Objective::Balance::hf,
                              .aux_coefficient = json_.at("router_aux_loss_coef").as_double()};
    const LossValues losses = gradients(objective);
    EXPECT_NEAR(losses.cross_entropy, json_.at("cross_entropy").as_double(), 1e-5);
    EXPECT_NEAR(losses.aux, json_.at("aux_loss").as_double(), 1e-5);
    EXPECT_NEAR(losses.total, json_.at("loss").as_double(), 1e-5);
    expect_gradients("grad.");
  }
}

TEST_P(Fixture, PerLayerBalanceAndZLossGradientsAgree) {
  const Json& balanced = json_.at("balanced");
  const Objective objective{.balance = Objective::Balance::per_layer,
                            .aux_coefficient = balanced.at("aux_coef").as_double(),
                            .z_coefficient = balanced.at("z_coef").as_double()};
  const LossValues losses = gradients(objective);
  auto mean = [](const Json& list) {
    double sum = 0;
    for (const Json& item : list.items()) sum += item.as_double();
    return sum / static_cast<double>(list.items().size());
  };
  EXPECT_NEAR(losses.aux, mean(balanced.at("aux_per_layer")), 1e-5);
  EXPECT_NEAR(losses.z, mean(balanced.at("z_per_layer")), 1e-5);
  expect_gradients("grad_balanced.");
}

TEST_P(Fixture, TenStepsAgree) {
  const Json& adamw = json_.at("adamw");
  const auto& betas = adamw.at("betas").items();
  Optimizer optimizer(*backend_, model_->store().groups(),
                      {.beta1 = betas[0].as_double(),
                       .beta2 = betas[1].as_double(),
                       .eps = adamw.at("eps").as_double(),
                       .weight_decay = adamw.at("weight_decay").as_double(),
                       .clip = adamw.at("clip_norm").as_double()});
  const Objective objective{.balance = Objective::Balance::hf,
                            .aux_coefficient = json_.at("router_aux_loss_coef").as_double()};
  for (const Json& loss : adamw.at("losses").items()) {
    EXPECT_NEAR(gradients(objective).total, loss.as_double(), 1e-4);
    const ArenaScope scope(*arena_);
    optimizer.step(*ctx_, adamw.at("lr").as_double(), ctx_->allocate({1}, Dtype::f64));
  }
}

TEST_P(Fixture, GreedyGenerationAgrees) {
  std::vector<int32_t> expected;
  for (const double id : read_values(*expected_, "greedy"))
    expected.push_back(static_cast<int32_t>(id));
  std::vector<int32_t> ids(expected.begin(), expected.begin() + 8);
  Engine engine(*backend_, *model_);
  TextOptions options;
  options.tokens.sampling.temperature = 0;
  options.tokens.max_tokens = 24;
  for (const auto& token : generate(engine, nullptr, ids, options).tokens) ids.push_back(token.id);
  EXPECT_THAT(ids, ::testing::ElementsAreArray(expected));
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& device : testing::devices())
    for (const char* model : {"small", "gqa", "mha8x2", "headdim", "sliding", "sharded", "tied"})
      all.push_back({device, model});
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, Fixture, ::testing::ValuesIn(cases()),
                         [](const auto& c) { return c.param.device + "_" + c.param.model; });

}  // namespace
}  // namespace mixtral
