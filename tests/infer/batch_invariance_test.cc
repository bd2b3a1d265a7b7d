// Batch-invariant kernels: a token's logits have the same bits in a prompt and decoded, alone and
// among others. Those of a GPU are skipped where there is none.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "infer/engine.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

constexpr int32_t kVocabulary = 515;
constexpr int64_t kDrawn = 12, kPrompts = 33;

ModelConfig config_of(int64_t window) {
  ModelConfig config = testing::small_config(kVocabulary, window);
  config.hidden_size = 256;
  config.intermediate_size = 192;
  config.num_heads = 8;
  config.head_dim = 64;
  config.num_experts = 8;
  config.max_positions = 512;
  return config;
}

struct Tokens {
  std::vector<int32_t> ids;
  std::vector<std::vector<double>> scores;  // log-probabilities of the most probable, a draw each
};

struct Setting {
  const char *name, *device;
  int64_t window;
  Dtype dtype;
  const char* format;
  std::optional<ops::CacheType> cache = {};
  friend void PrintTo(const Setting& s, std::ostream* out) { *out << s.name; }
};

class BatchInvariance : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    const Setting& s = GetParam();
    const std::string device = s.device;
    if (device == "cuda" && make_backend("auto")->kind() != DeviceKind::gpu)
      GTEST_SKIP() << "no GPU that the CUDA backend can use";
    backend_ = make_backend(device);
    backend_->set_batch_invariant(true);
    model_ = std::make_unique<Mixtral>(
        *backend_, config_of(s.window),
        Mixtral::Options{.weights = s.dtype,
                         .compute = s.dtype,
                         .quantization = ops::find_weight_format(s.format),
                         .cache = s.cache});
    nn::initialise(
        *backend_, model_->parameters(),
        {.seed = 3, .deviation = 0.1, .residual_deviation = 0.1, .embedding_deviation = 1});
    RandomStream random(17);
    for (int64_t i = 0; i < kPrompts; ++i) {
      std::vector<int32_t> prompt(1 + random.below(i % 4 == 0 ? 200 : 40));
      for (int32_t& token : prompt) token = static_cast<int32_t>(random.below(kVocabulary));
      prompts_.push_back(std::move(prompt));
    }
  }

  Request request(std::vector<int32_t> prompt, int64_t count, Tokens& to) {
    Request r;
    r.prompt = std::move(prompt);
    r.options.max_tokens = count;
    r.options.sampling.temperature = 0;
    r.best = 5;
    r.on_token = [&to](const GeneratedToken& token) {
      to.ids.push_back(token.id);
      to.scores.emplace_back();
      for (const TokenProbability& each : token.best)
        to.scores.back().push_back(each.log_probability);
      return Next::go_on;
    };
    return r;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Mixtral> model_;
  std::vector<std::vector<int32_t>> prompts_;
};

TEST_P(BatchInvariance, AloneAmongOthersAndInThePrompt) {
  std::vector<Tokens> alone(prompts_.size()), together(prompts_.size());
  {
    Engine engine(*backend_, *model_, {.sequences = 1});
    for (size_t i = 0; i < prompts_.size(); ++i) {
      engine.submit(request(prompts_[i], kDrawn, alone[i]));
      engine.run();
      engine.forget_prefixes();
    }
  }
  {
    Engine engine(*backend_, *model_, {.sequences = kPrompts});
    for (size_t i = 0; i < prompts_.size(); ++i)
      engine.submit(request(prompts_[i], kDrawn, together[i]));
    engine.run();
  }
  Engine engine(*backend_, *model_, {.sequences = 1});
  for (size_t i = 0; i < prompts_.size(); ++i) {
    ASSERT_EQ(alone[i].ids.size(), kDrawn);
    EXPECT_EQ(alone[i].ids, together[i].ids) << i;
    EXPECT_EQ(alone[i].scores, together[i].scores) << i;
    // What was drawn so far, as a prompt.
    for (const size_t drawn : {size_t{1}, size_t{kDrawn - 1}}) {
      std::vector<int32_t> longer = prompts_[i];
      longer.insert(longer.end(), alone[i].ids.begin(),
                    alone[i].ids.begin() + static_cast<std::ptrdiff_t>(drawn));
      Tokens next;
      engine.submit(request(longer, 1, next));
      engine.run();
      engine.forget_prefixes();
      EXPECT_EQ(next.scores.front(), alone[i].scores[drawn]) << i << ", " << drawn;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Settings, BatchInvariance,
    ::testing::Values(
        Setting{"cpu", "cpu", 48, Dtype::f32, "off"},
        Setting{"cuda_bf16", "cuda", 0, Dtype::bf16, "off"},
        Setting{"cuda_window", "cuda", 48, Dtype::bf16, "off"},
        Setting{"cuda_f32", "cuda", 0, Dtype::f32, "off"},
        Setting{"cuda_f32_window", "cuda", 48, Dtype::f32, "off"},
        Setting{"cuda_nf4", "cuda", 0, Dtype::bf16, "nf4"},
        Setting{"cpu_fp8_cache", "cpu", 0, Dtype::f32, "off", ops::CacheType::fp8},
        Setting{"cuda_int8_cache", "cuda", 48, Dtype::bf16, "off", ops::CacheType::int8},
        Setting{"cuda_fp8_cache", "cuda", 0, Dtype::bf16, "off", ops::CacheType::fp8}),
    [](const auto& i) { return std::string(i.param.name); });

}  // namespace
}  // namespace mixtral
