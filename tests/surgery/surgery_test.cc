// What models made of others' experts compute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/surgery/surgery_rig.h"

namespace mixtral {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::Gt;
using ::testing::HasSubstr;

TEST_F(Surgery, ADenseModelIsAMixtralWithOneExpert) {
  const ModelConfig config = config_of(1, 1);
  const testing::Weights weights = testing::draw_model(config, 1);
  testing::write_mixtral(path("one"), config, weights);
  testing::write_dense(path("dense"), config, weights);
  const ModelSource dense = open("dense", true);
  EXPECT_TRUE(dense.is_dense());
  EXPECT_EQ(logits(dense), logits(open("one")));
  EXPECT_THAT(message_of([&] { open("dense"); }), HasSubstr("\"llama\""));
}

TEST_F(Surgery, AnUpcycledModelComputesWhatTheDenseOneDoes) {
  const ModelConfig config = config_of(1, 1);
  testing::write_dense(path("dense"), config, testing::draw_model(config, 2), "mistral");
  write_file(path("dense") / "LICENSE", "of the weights\n");
  const ModelSource dense = open("dense", true);
  const SurgeryResult made = write(plan_upcycle(dense, 4, 2, {}), "out");
  const ModelSource written = open("out");
  EXPECT_EQ(written.config().num_experts, 4);
  EXPECT_EQ(written.config().experts_per_token, 2);
  EXPECT_LE(difference(logits(dense), logits(written)), 2e-6);
  EXPECT_NEAR(made.quality->after, made.quality->before, 1e-5 * made.quality->before);
  EXPECT_EQ(read_file(path("out") / "LICENSE"), "of the weights\n");
  // The routers differ from token to token: all experts are chosen.
  for (const LayerStatistics& layer : statistics(written).layers)
    EXPECT_THAT(layer.load, Each(Gt(0)));
}

TEST_F(Surgery, NoiseOnCopiesIsDrawnAgainFromTheSeedAndSparesTheFirst) {
  const ModelConfig config = config_of(1, 1);
  testing::write_dense(path("dense"), config, testing::draw_model(config, 3));
  const ModelSource dense = open("dense", true);
  const CopyNoise noise{.deviation = 0.1, .share = 0.5, .seed = 7};
  write(plan_upcycle(dense, 3, 2, noise), "a");
  write(plan_upcycle(dense, 3, 2, noise), "b");
  write(plan_upcycle(dense, 3, 2, {.deviation = 0.1, .share = 0.5, .seed = 8}), "c");
  EXPECT_EQ(bytes_of(path("a")), bytes_of(path("b")));
  EXPECT_NE(bytes_of(path("a")), bytes_of(path("c")));
  const auto was = values_of(path("dense"), "model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(values_of(path("a"), expert_name(1, 0, TensorKind::w2)), was);
  const auto noisy = values_of(path("a"), expert_name(1, 2, TensorKind::w2));
  double square = 0, added = 0;
  int changed = 0;
  for (size_t i = 0; i < was.size(); ++i) {
    square += std::pow(was[i], 2);
    added += std::pow(noisy[i] - was[i], 2);
    changed += noisy[i] != was[i];
  }
  EXPECT_NEAR(changed, static_cast<double>(was.size()) / 2, static_cast<double>(was.size()) / 8);
  EXPECT_NEAR(std::sqrt(added / square), 0.1 * std::sqrt(0.5), 0.02);
}

TEST_F(Surgery, PruningAnExpertThatIsNeverChosenLeavesLogitsAsTheyAre) {
  const ModelConfig config = config_of(5, 2);
  testing::Weights weights = testing::draw_model(config, 4);
  // Whatever the sign, two of the others have a positive logit.
  set_router(weights, config, {1, -1, 0, 2, -2});
  testing::write_mixtral(path("model"), config, weights);
  const ModelSource source = open("model");
  for (const PruneBy by : {PruneBy::load, PruneBy::reap}) {
    const ModelEdit edit = plan_prune(source, statistics(source), 4, by);
    const std::string name = by == PruneBy::load ? "load" : "reap";
    const SurgeryResult made = write(edit, name);
    const ModelSource written = open(name);
    EXPECT_EQ(written.config().num_experts, 4);
    EXPECT_EQ(logits(written), logits(source)) << name;
    EXPECT_EQ(values_of(path(name), expert_name(0, 2)),
              values_of(path("model"), expert_name(0, 3)));
    EXPECT_THAT(made.receipt.edit.sources.front().dropped,
                Contains(expert_name(1, 2, TensorKind::w3)));
    EXPECT_EQ(made.receipt.edit.sources.front().dropped.size(), 6u);
  }
}

// The score of each expert from the layer's input on, in plain loops.
TEST_F(Surgery, ReapIsTheMeanOfWeightTimesNormOverTheTokensOfAnExpert) {
  const ModelConfig config = config_of(4, 2);
  const testing::Weights weights = testing::draw_model(config, 5);
  testing::write_mixtral(path("model"), config, weights);
  const ModelSource source = open("model");
  std::vector<std::vector<float>> inputs;
  PartReader reader(source.tensors(), config);
  StreamedModel model(*backend_, reader);
  Arena arena(*backend_);
  Context ctx(*backend_, arena, Dtype::f32);
  const Batch batch = upload(ctx, text_of(config), config.vocab_size, config.max_positions);
  StreamedModel::Listener listener;
  listener.layer = [&](Context&, int64_t, const Tensor& x) {
    const auto values = x.span<float>();
    inputs.emplace_back(values.begin(), values.end());
  };
  model.hidden(ctx, batch, listener);
  const auto product = [](const std::vector<float>& matrix, const std::vector<double>& x) {
    std::vector<double> y(matrix.size() / x.size());
    for (size_t i = 0; i < matrix.size(); ++i)
      y[i / x.size()] += static_cast<double>(matrix[i]) * x[i % x.size()];
    return y;
  };
  const ExpertStatistics found = statistics(source);
  for (size_t layer = 0; layer < 2; ++layer) {
    const auto l = static_cast<int64_t>(layer);
    std::vector<double> sums(4);
    std::vector<int64_t> load(4);
    for (size_t token = 0; token < 36; ++token) {
      const std::vector<double> x(
          inputs[layer].begin() + static_cast<std::ptrdiff_t>(token * 16),
          inputs[layer].begin() + static_cast<std::ptrdiff_t>(token * 16 + 16));
      const std::vector<double> scores = product(weights.at(router_name(l)), x);
      std::vector<size_t> order = {0, 1, 2, 3};
      std::ranges::sort(order, [&](size_t a, size_t b) { return scores[a] > scores[b]; });
      for (size_t j = 0; j < 2; ++j) {
        const size_t e = order[j];
        const double weight = 1 / (1 + std::exp(scores[order[1 - j]] - scores[e]));
        const auto matrix = [&](TensorKind kind) {
          return weights.at(expert_name(l, static_cast<int64_t>(e), kind));
        };
        std::vector<double> h = product(matrix(TensorKind::w1), x);
        const std::vector<double> up = product(matrix(TensorKind::w3), x);
        for (size_t i = 0; i < h.size(); ++i) h[i] *= up[i] / (1 + std::exp(-h[i]));
        double square = 0;
        for (const double y : product(matrix(TensorKind::w2), h)) square += y * y;
        sums[e] += weight * std::sqrt(square);
        ++load[e];
      }
    }
    EXPECT_EQ(found.layers[layer].load, load);
    for (size_t e = 0; e < 4; ++e) {
      const double mean = load[e] > 0 ? sums[e] / static_cast<double>(load[e]) : 0;
      EXPECT_NEAR(found.layers[layer].saliency[e], mean, 1e-4 * mean) << layer << " " << e;
    }
  }
}

TEST_F(Surgery, PruningKeepsTheHighestScoresAndLowersTopKWhereItMust) {
  const ModelConfig config = config_of(4, 3);
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 6));
  const ModelSource source = open("model");
  ExpertStatistics scores = statistics(source);
  scores.layers[0].load = {1, 9, 9, 3};
  scores.layers[1].load = {5, 0, 0, 7};
  const ModelEdit edit = plan_prune(source, scores, 2, PruneBy::load);
  EXPECT_EQ(edit.config.experts_per_token, 2);
  write(edit, "out");
  EXPECT_EQ(values_of(path("out"), expert_name(0, 1)), values_of(path("model"), expert_name(0, 2)));
  EXPECT_EQ(values_of(path("out"), expert_name(1, 1)), values_of(path("model"), expert_name(1, 3)));
  const auto was = values_of(path("model"), router_name(1));
  EXPECT_EQ(values_of(path("out"), router_name(1)), [&] {
    std::vector<float> rows(was.begin(), was.begin() + 16);
    rows.insert(rows.end(), was.begin() + 48, was.begin() + 64);
    return rows;
  }());
}

TEST_F(Surgery, MergingEqualExpertsLeavesLogitsAsTheyAre) {
  const ModelConfig config = config_of(4, 2);
  testing::Weights weights = testing::draw_model(config, 7);
  for (int64_t e = 1; e < 4; ++e) copy_expert(weights, config, 0, e);
  testing::write_mixtral(path("model"), config, weights);
  const ModelSource source = open("model");
  write(plan_merge(source, statistics(source, 8), 2), "out");
  EXPECT_LE(difference(logits(source), logits(open("out"))), 2e-6);
}

TEST_F(Surgery, MergingWeighsByLoadSoThatACopyNobodyChoosesChangesNothing) {
  const ModelConfig config = config_of(5, 2);
  testing::Weights weights = testing::draw_model(config, 8);
  set_router(weights, config, {1, -1, 0, 2, -2});
  copy_expert(weights, config, 1, 2);
  testing::write_mixtral(path("model"), config, weights);
  const ModelSource source = open("model");
  const SurgeryResult made = write(plan_merge(source, statistics(source, 64), 4), "out");
  EXPECT_EQ(logits(open("out")), logits(source));
  EXPECT_THAT(made.receipt.edit.sources.front().dropped, Contains(expert_name(0, 2)));
}

TEST_F(Surgery, AMergedExpertIsTheMeanByLoad) {
  const ModelConfig config = config_of(3, 1);
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 9));
  const ModelSource source = open("model");
  ExpertStatistics statistics{.tokens = 8, .layers = {}};
  for (int layer = 0; layer < 2; ++layer)
    statistics.layers.push_back(
        {.load = {2, 5, 6}, .saliency = {0, 0, 0}, .output = {{0, 0}, {9, 9}, {1, 0}}});
  const SurgeryResult made = write(plan_merge(source, statistics, 2), "out");
  const auto check = [&](const std::vector<float>& merged, const std::vector<float>& a,
                         const std::vector<float>& b) {
    for (size_t i = 0; i < merged.size(); ++i)
      EXPECT_NEAR(merged[i], 0.25 * a[i] + 0.75 * b[i], 1e-6);
  };
  check(values_of(path("out"), expert_name(0, 0)), values_of(path("model"), expert_name(0, 0)),
        values_of(path("model"), expert_name(0, 2)));
  const auto router = values_of(path("model"), router_name(1));
  auto row = values_of(path("out"), router_name(1));
  row.resize(16);
  check(row, {router.begin(), router.begin() + 16}, {router.begin() + 32, router.end()});
  EXPECT_EQ(values_of(path("out"), expert_name(1, 1)), values_of(path("model"), expert_name(1, 1)));
  const auto& tensors = made.receipt.tensors;
  const auto found = std::ranges::find(tensors, expert_name(0, 0), &ReceiptTensor::model);
  ASSERT_NE(found, tensors.end());
  EXPECT_EQ(found->others.size(), 1u);
  EXPECT_THAT(found->transform, HasSubstr("0.75 of expert 2"));
}

TEST_F(Surgery, AddedExpertsAreCopiesBesideThoseThatWereThere) {
  const ModelConfig config = config_of(3, 2);
  testing::write_mixtral(path("model"), config, testing::draw_model(config, 10));
  const ModelSource source = open("model");
  write(plan_add(source, 3, {2, 0}, {}), "same");
  const auto name = [](int64_t e) { return expert_name(1, e, TensorKind::w3); };
  for (const auto& [to, from] :
       {std::pair(0, 0), std::pair(2, 2), std::pair(3, 2), std::pair(4, 0), std::pair(5, 2)})
    EXPECT_EQ(values_of(path("same"), name(to)), values_of(path("model"), name(from))) << to;
  write(plan_add(source, 1, {}, {.deviation = 0.1}), "noisy");
  EXPECT_EQ(values_of(path("noisy"), name(0)), values_of(path("model"), name(0)));
  EXPECT_NE(values_of(path("noisy"), name(3)), values_of(path("model"), name(0)));
  const auto was = values_of(path("model"), router_name(0));
  const auto rows = values_of(path("noisy"), router_name(0));
  EXPECT_TRUE(std::equal(was.begin(), was.end(), rows.begin()));
  EXPECT_FALSE(std::equal(was.begin(), was.begin() + 16, rows.begin() + 48));
}

}  // namespace
}  // namespace mixtral
