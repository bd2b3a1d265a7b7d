// What a text shows each matrix of a model: also experts that hardly a token chooses.
#include "convert/layer_inputs.h"

#include <gtest/gtest.h>

#include <cmath>

#include "open/model_source.h"
#include "tests/support/fixtures.h"

namespace mixtral {
namespace {

class Inputs : public ::testing::Test {
 protected:
  LayerInputs inputs(int64_t tokens) {
    HostBatch text;
    std::vector<int32_t> sequence;
    for (int64_t i = 0; i < tokens; ++i) {
      sequence.push_back(static_cast<int32_t>((7 * i + 3) % source_.config().vocab_size));
      if (i + 1 < tokens && (i + 1) % 16 != 0) continue;
      text.append(sequence);
      sequence.clear();
    }
    return {*backend_, source_.tensors(), source_.config(), text};
  }
  static std::vector<float> copy_of(const Tensor& x) {
    return {x.span<float>().begin(), x.span<float>().end()};
  }
  TensorId w(TensorKind kind, int64_t layer, int64_t expert) const {
    return {.kind = kind, .layer = layer, .expert = expert};
  }

  const ModelSource source_ = ModelSource::resolve({.model = testing::fixture("small").string()});
  const ModelConfig& config_ = source_.config();
  std::unique_ptr<Backend> backend_ = make_backend("cpu", 1);
};

TEST_F(Inputs, AnExpertSeesItsTokensAndASampleOfTheOthers) {
  LayerInputs all = inputs(24);
  int64_t chosen = 0;
  for (int64_t e = 0; e < config_.num_experts; ++e) {
    const Tensor rows = all.rows(w(TensorKind::w1, 0, e));
    chosen += all.tokens_of(e);
    EXPECT_EQ(rows.dim(0), 24 * config_.experts_per_token);  // few enough to see all
    EXPECT_EQ(rows.dim(1), config_.hidden_size);
    EXPECT_EQ(all.rows(w(TensorKind::w2, 0, e)).dim(1), config_.intermediate_size);
  }
  EXPECT_EQ(chosen, 24 * config_.experts_per_token);
}

TEST_F(Inputs, AnExpertThatNoTokenChoseIsShownThoseOfOthers) {
  LayerInputs one = inputs(1);
  int64_t unchosen = 0;
  for (int64_t e = 0; e < config_.num_experts; ++e) {
    const Tensor rows = one.rows(w(TensorKind::w2, 1, e));
    ASSERT_EQ(rows.dim(0), config_.experts_per_token);
    double size = 0;
    for (const float value : rows.span<float>()) size += std::abs(static_cast<double>(value));
    EXPECT_GT(size, 0) << e;
    unchosen += one.tokens_of(e) == 0;
  }
  EXPECT_EQ(unchosen, config_.num_experts - config_.experts_per_token);
}

TEST_F(Inputs, GoingBackToALayerGivesTheSameRows) {
  LayerInputs some = inputs(12);
  const TensorId first = w(TensorKind::w2, 0, 1), query{.kind = TensorKind::query, .layer = 0};
  const std::vector<float> rows = copy_of(some.rows(first)), norm = copy_of(some.rows(query));
  some.rows({.kind = TensorKind::head});
  EXPECT_EQ(copy_of(some.rows(first)), rows);
  EXPECT_EQ(copy_of(some.rows(query)), norm);
}

TEST_F(Inputs, OfManyOthersASampleCountsAsSixtyFourTokens) {
  LayerInputs many = inputs(128);
  const Tensor rows = many.rows(w(TensorKind::w1, 0, 0));
  const int64_t own = many.tokens_of(0), shared = rows.dim(0) - own;
  ASSERT_GT(shared, LayerInputs::kSharedTokens);
  // Norms of rows are near the root of the width here: the weights of the norm are near 1.
  double squares = 0;
  for (const float value : rows.slice(own, rows.dim(0)).span<float>())
    squares += static_cast<double>(value) * static_cast<double>(value);
  double own_squares = 0;
  for (const float value : rows.slice(0, own).span<float>())
    own_squares += static_cast<double>(value) * static_cast<double>(value);
  EXPECT_NEAR(squares / LayerInputs::kSharedTokens / (own_squares / static_cast<double>(own)), 1,
              0.2);
}

}  // namespace
}  // namespace mixtral
