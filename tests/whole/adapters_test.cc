// LoRA adapters against PEFT's results (../shared/fixtures/lora-*): logits, gradients, ten steps of
// AdamW, merged weights; and what must hold of any adapter.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "backends/registry.h"
#include "model/adapter.h"
#include "model/checkpoint.h"
#include "model/loss.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "train/optimizer.h"

namespace mixtral {
namespace {

using testing::read_values;
using testing::relative_error;
namespace fs = std::filesystem;

struct Case {
  std::string device, name;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.device << " " << c.name; }
};

/// PEFT's names in memory have ".default" where those in files have nothing.
std::string in_file(std::string name) {
  const auto at = name.find(".default");
  if (at != std::string::npos) name.erase(at, std::strlen(".default"));
  return name;
}

class AdapterFixture : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    directory_ = testing::fixture(GetParam().name);
    if (!fs::exists(directory_)) GTEST_SKIP() << "no reference results at " << directory_;
    if (!testing::have_device(GetParam().device)) GTEST_SKIP() << "no GPU";
    backend_ = make_backend(GetParam().device, 2);
    arena_ = std::make_unique<Arena>(*backend_);
    ctx_ = std::make_unique<Context>(*backend_, *arena_, Dtype::f32);
    model_ = load_model(*backend_, directory_ / "base", {});
    adapter_ = std::make_unique<Adapter>(
        *backend_, *model_, AdapterFile::load(directory_ / "adapter", model_->config()),
        Adapter::Options{.trainable = true});
    batch_ = testing::read_batch(directory_ / "data.jsonl");
    expected_ = std::make_unique<SafetensorsFile>(directory_ / "expected.safetensors");
    json_ = Json::load(directory_ / "expected.json");
  }

  Batch batch(int32_t adapter = kOwnAdapter) {
    batch_.adapter = adapter;
    return upload(*ctx_, batch_, model_->config().vocab_size, model_->context());
  }

  std::vector<double> logits(int32_t adapter = kOwnAdapter) {
    const ArenaScope scope(*arena_);
    const Tensor hidden = model_->forward(*ctx_, batch(adapter), nullptr, nullptr, nullptr);
    const Tensor out = ctx_->allocate({hidden.dim(0), model_->config().vocab_size}, Dtype::f32);
    model_->logits(*ctx_, hidden, out, {.all = adapter});
    std::vector<float> values(static_cast<size_t>(out.numel()));
    backend_->download(out, Tensor(values.data(), out.shape(), Dtype::f32));
    return {values.begin(), values.end()};
  }

  LossValues gradients() {
    const ArenaScope scope(*arena_);
    adapter_->store().zero_gradients(*backend_);
    const Objective objective{.balance = Objective::Balance::hf, .aux_coefficient = 0.02};
    const LossTotals totals = LossTotals::allocate(*ctx_);
    const Tensor scale = ctx_->allocate({1}, Dtype::f32);
    ctx_->run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(batch_.label_count())});
    accumulate_gradients(*ctx_, *model_, batch(), objective, {.label_scale = scale}, totals,
                         nullptr);
    return read(*ctx_, totals, objective, batch_.label_count());
  }

  /// Compares a file's tensors with the expected ones under `prefix`.
  void compare(const fs::path& file, const std::string& prefix, double tolerance) {
    const SafetensorsFile actual(file);
    int compared = 0;
    for (const auto& entry : expected_->entries()) {
      if (!entry.name.starts_with(prefix)) continue;
      const std::string name = in_file(entry.name.substr(prefix.size()));
      ASSERT_TRUE(actual.find(name)) << name;
      EXPECT_LE(relative_error(read_values(actual, name), read_values(*expected_, entry.name)),
                tolerance)
          << name;
      ++compared;
    }
    EXPECT_GT(compared, 0);
  }

  void train_ten_steps() {
    const Json& adamw = json_.at("adamw");
    Optimizer optimizer(*backend_, adapter_->store().groups(),
                        {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0, .clip = 0});
    for (const Json& loss : adamw.at("losses").items()) {
      EXPECT_NEAR(gradients().total, loss.as_double(), 1e-4);
      const ArenaScope scope(*arena_);
      optimizer.step(*ctx_, adamw.at("lr").as_double(), ctx_->allocate({1}, Dtype::f64));
    }
  }

  TemporaryDirectory scratch_;
  fs::path directory_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Mixtral> model_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<SafetensorsFile> expected_;
  HostBatch batch_;
  Json json_ = Json::parse("{}", "");
};

TEST_P(AdapterFixture, LogitsAgree) {
  EXPECT_LE(relative_error(logits(), read_values(*expected_, "logits")), 2e-5);
}

TEST_P(AdapterFixture, GradientsAgreeAndFrozenWeightsHaveNone) {
  EXPECT_NEAR(gradients().total, json_.at("loss").as_double(), 1e-5);
  save_gradients(*backend_, model_->parameters(), scratch_.path() / "gradients.safetensors");
  compare(scratch_.path() / "gradients.safetensors", "grad.", 2e-4);
  model_->for_each_parameter([&](nn::Parameter& p) {
    const bool update = p.role == nn::Role::lora_a || p.role == nn::Role::lora_b;
    EXPECT_EQ(!p.grad.empty(), update) << p.parts[0].name;
  });
  EXPECT_EQ(model_->store().gradient_bytes(), 0);
}

TEST_P(AdapterFixture, TenStepsAndTheMergedWeightsAgree) {
  train_ten_steps();
  const fs::path saved = scratch_.path() / "adapter", merged = scratch_.path() / "merged";
  fs::create_directories(saved);
  adapter_->save(saved);
  // AdamW divides by the root of v: where a gradient is nearly zero its rounding shows.
  compare(saved / "adapter_model.safetensors", "after10.", 2e-3);

  const AdapterFile file = AdapterFile::load(saved, model_->config());
  EXPECT_GT(merge_adapters(directory_ / "base", {{file}}, merged), 0);
  compare(merged / "model.safetensors", "merged.", 2e-4);
  const std::vector<double> wrapped = logits();
  adapter_->merge();
  EXPECT_LE(relative_error(logits(), wrapped), 2e-5) << "merged in memory";
  adapter_.reset();
  model_ = load_model(*backend_, merged, {});
  EXPECT_LE(relative_error(logits(), wrapped), 2e-5) << "merged on disk";
}

TEST_P(AdapterFixture, WhatIsSavedIsWhatWasLoaded) {
  adapter_->save(scratch_.path());
  const SafetensorsFile before(directory_ / "adapter" / "adapter_model.safetensors");
  const SafetensorsFile after(scratch_.path() / "adapter_model.safetensors");
  ASSERT_EQ(before.entries().size(), after.entries().size());
  for (const auto& entry : before.entries())
    EXPECT_EQ(read_values(after, entry.name), read_values(before, entry.name)) << entry.name;
}

TEST_P(AdapterFixture, WithoutAnAdapterABatchGetsTheBaseModel) {
  const std::vector<double> with = logits();
  const std::vector<double> off = logits(kNoAdapter);
  adapter_.reset();
  EXPECT_EQ(logits(), off);
  EXPECT_NE(off, with);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& device : testing::devices())
    for (const char* name : {"small-lora", "lora-qv", "lora-attention-rs", "lora-experts"})
      all.push_back({device, name});
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, AdapterFixture, ::testing::ValuesIn(cases()), [](const auto& c) {
  std::string name = c.param.device + "_" + c.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace mixtral
