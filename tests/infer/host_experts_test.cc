// Experts that stand in the host's memory, some of them on the device, give the results of a model
// that is all there: with places for one expert of each layer and for more, in prompts of several
// steps, and for several sequences at once. A GPU's cases are skipped where there is none.
#include "model/host_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "infer/engine.h"
#include "model/checkpoint.h"
#include "model/expert_cache.h"
#include "model/open_tensors.h"
#include "tests/support/files.h"
#include "tests/support/greedy.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

using ::testing::HasSubstr;

/// Where weights come from and how they are kept.
struct Case {
  std::string name, device;
  Dtype type = Dtype::f32;  // of dense weights and of the computation
  std::string format = "off";
  bool drawn = false;
  // Whether the kernels of a product of several experts are those of one: so they are in bf16.
  bool exact = true;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

class HostExpertsTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    if (c.device == "cuda" && make_backend("auto")->kind() != DeviceKind::gpu)
      GTEST_SKIP() << "no GPU that the CUDA backend can use";
    backend_ = make_backend(c.device);
    const int64_t width = c.device == "cuda" ? 256 : 64;
    config_.vocab_size = 40;
    config_.hidden_size = config_.intermediate_size = width;
    config_.num_layers = 3;
    config_.num_heads = 4;
    config_.num_kv_heads = 2;
    config_.head_dim = width / 4;
    config_.num_experts = 4;
    config_.experts_per_token = 2;
    config_.max_positions = 256;
    config_.rope_theta = 1e4;
    options_ = {.weights = c.type, .compute = c.type};
    if (c.format != "off") options_.quantization = ops::find_weight_format(c.format);
    if (c.type == Dtype::bf16) options_.operands = ops::Operands::bf16;
    testing::write_mixtral(scratch_.path(), config_, testing::draw_model(config_, 7));
    tensors_ = open_tensors(*find_model_files(scratch_.path()));
  }

  std::unique_ptr<Mixtral> open(bool streamed) {
    Mixtral::Options options = options_;
    options.stream_experts = streamed;
    auto model = std::make_unique<Mixtral>(*backend_, config_, options);
    if (GetParam().drawn)
      nn::initialise(*backend_, model->parameters(), kDrawn);
    else
      load_weights(*backend_, *model, *tensors_);
    return model;
  }
  std::unique_ptr<HostExperts> experts_of(Mixtral& model) {
    auto experts = std::make_unique<HostExperts>(*backend_, model);
    if (GetParam().drawn)
      experts->draw(model, kDrawn);
    else
      experts->load(model, *tensors_);
    return experts;
  }

  /// Three prompts, one of them longer than a step reads, continued together.
  testing::Greedy run(const Mixtral& model) {
    Engine engine(*backend_, model,
                  {.context = 200, .sequences = 3, .chunk = 100, .share_pages = false});
    testing::Greedy result = testing::continue_prompts(engine, {3, 150, 1});
    EXPECT_TRUE(!model.options().stream_experts || engine.replayed() == 0);
    return result;
  }
  void expect_same(const testing::Greedy& result, const testing::Greedy& whole) const {
    EXPECT_EQ(result.ids, whole.ids);
    ASSERT_EQ(result.logits.size(), whole.logits.size());
    if (GetParam().exact) {
      EXPECT_TRUE(result.logits == whole.logits);
      return;
    }
    for (size_t i = 0; i < whole.logits.size(); ++i)
      ASSERT_NEAR(result.logits[i], whole.logits[i], 1e-3) << i;
  }

  static constexpr nn::Initialisation kDrawn{
      .seed = 3, .deviation = 0.1, .residual_deviation = 0.1, .embedding_deviation = 1};
  const TemporaryDirectory scratch_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<TensorSource> tensors_;
  ModelConfig config_;
  Mixtral::Options options_;
};

TEST_P(HostExpertsTest, GiveTheResultsOfAModelOnTheDevice) {
  const testing::Greedy whole = run(*open(false));
  ASSERT_EQ(whole.ids[1].size(), 20u);
  ASSERT_EQ(whole.logits.size(), 150u * 40u);
  const auto model = open(true);
  const auto experts = experts_of(*model);
  const ExpertSizes& sizes = experts->sizes();
  for (const int64_t places : {1, 2, 3, 4})
    for (const bool read_ahead : {false, true}) {
      SCOPED_TRACE(std::to_string(places) + (read_ahead ? " places, read ahead" : " places"));
      ExpertCache cache(*backend_, *model, *experts,
                        {.memory = places * sizes.least_bytes(),
                         .readers = places == 3 ? 1 : 0,
                         .read_ahead = read_ahead});
      EXPECT_TRUE(cache.copies());
      EXPECT_EQ(cache.places(), 3 * places);
      expect_same(run(*model), whole);
      const auto figures = cache.figures();
      EXPECT_GT(figures.needed, 0);
      EXPECT_GT(figures.expected, 0);
      const int64_t all = int64_t{3} * 4 * 2;  // copied once where there is room
      EXPECT_LE(figures.read, places == 4 ? all : 10'000);
      EXPECT_GT(figures.read, places == 1 ? figures.needed / 4 : 0);
      EXPECT_GT(cache.measure_reading(0.01), 0);
    }
}

TEST_P(HostExpertsTest, GiveBackTheirMemory) {
  std::vector<int64_t> available;
  for (int i = 0; i < 4; ++i) {
    {
      const auto model = open(true);
      const auto experts = experts_of(*model);
      ExpertCache cache(*backend_, *model, *experts, {.memory = experts->sizes().least_bytes()});
      cache.need(0, std::vector<int32_t>{0, 1, 2});
      cache.expect(1, std::vector<int32_t>{0, 1});
      if (i % 2 == 0) (void)cache.hold(0, nn::ExpertProduct::gate_up, 0);
    }
    available.push_back(backend_->memory().available);
  }
  EXPECT_TRUE(backend_->kind() != DeviceKind::gpu || available[3] == available[1])
      << available[1] - available[3] << " bytes were kept";
}

INSTANTIATE_TEST_SUITE_P(
    Formats, HostExpertsTest,
    ::testing::Values(Case{"ref_f32", "ref"}, Case{"ref_bf16_weights", "ref", Dtype::f32, "bf16"},
                      Case{"ref_q4_0", "ref", Dtype::f32, "q4_0"},
                      Case{"ref_nf4_drawn", "ref", Dtype::f32, "nf4", true},
                      Case{.name = "cuda_f32", .device = "cuda", .exact = false},
                      Case{"cuda_bf16", "cuda", Dtype::bf16},
                      Case{"cuda_bf16_drawn", "cuda", Dtype::bf16, "off", true},
                      Case{"cuda_fp8", "cuda", Dtype::bf16, "fp8"},
                      Case{"cuda_nf4", "cuda", Dtype::bf16, "nf4"},
                      Case{"cuda_nf4_drawn", "cuda", Dtype::bf16, "nf4", true},
                      Case{"cuda_int4", "cuda", Dtype::bf16, "int4_g64_bf16"},
                      Case{"cuda_int8", "cuda", Dtype::bf16, "int8_g64_bf16"}),
    [](const auto& one) { return one.param.name; });

TEST(HostExperts, AChunkThatNeedsAllCopiesTheMissingOnesOnce) {
  const auto backend = make_backend("ref");
  ModelConfig config = builtin_config("tiny");
  config.num_layers = 2;
  config.num_experts = 4;
  Mixtral model(*backend, config, {.context = 16, .stream_experts = true});
  nn::initialise(*backend, model.parameters(), {.seed = 1});
  HostExperts experts(*backend, model);
  experts.draw(model, {.seed = 1});
  ExpertCache cache(*backend, model, experts, {.memory = 3 * experts.sizes().least_bytes()});
  const std::vector<int32_t> all{0, 1, 2, 3}, likeliest_first{3, 2, 1, 0};
  const auto pass = [&] {
    cache.expect(1, likeliest_first);
    cache.need(1, all);
    for (const auto product : {nn::ExpertProduct::gate_up, nn::ExpertProduct::down})
      for (const int32_t expert : cache.order(1, product)) {
        (void)cache.hold(1, product, expert);
        cache.give_back(1, product, expert);
      }
    return cache.figures().read;
  };
  const int64_t first = pass();
  EXPECT_EQ(first, 4 * 2);
  EXPECT_EQ(pass() - first, 2);  // one expert: its two products
  EXPECT_EQ(pass() - first, 4);
}

TEST(HostExperts, AreRefusedTooLittleMemoryByName) {
  const auto backend = make_backend("ref");
  Mixtral model(*backend, builtin_config("tiny"), {.context = 16, .stream_experts = true});
  HostExperts experts(*backend, model);
  EXPECT_THAT(message_of([&] {
                ExpertCache(*backend, model, experts,
                            {.memory = experts.sizes().least_bytes() - 1});
              }),
              HasSubstr("expert-memory"));
}

}  // namespace
}  // namespace mixtral
