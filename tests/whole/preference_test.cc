// DPO against Rafailov et al.'s formula as computed from Hugging Face's models
// (../shared/fixtures/dpo): each answer's log-probability, the losses, and the policy's gradients.

#include "train/preference.h"

#include <gtest/gtest.h>

#include "model/checkpoint.h"
#include "tests/support/fixtures.h"

namespace mixtral {
namespace {

class DpoFixture : public ::testing::TestWithParam<std::string> {};

/// The pairs of a file of {"prompt_ids", "chosen_ids", "rejected_ids"}: two sequences each.
HostBatch read_pairs(const std::filesystem::path& path) {
  HostBatch batch;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line, path.string());
    for (const char* answer : {"chosen_ids", "rejected_ids"}) {
      std::vector<int32_t> tokens, labels;
      for (const Json& id : row.at("prompt_ids").items()) {
        tokens.push_back(static_cast<int32_t>(id.as_int()));
        labels.push_back(ops::kIgnoredLabel);
      }
      for (const Json& id : row.at(answer).items()) {
        tokens.push_back(static_cast<int32_t>(id.as_int()));
        labels.push_back(tokens.back());
      }
      batch.append(tokens, labels);
    }
  }
  return batch;
}

TEST_P(DpoFixture, LogProbabilitiesLossAndGradientsAgree) {
  if (!testing::have_fixture("dpo"))
    GTEST_SKIP() << "no reference results at " << testing::fixture("dpo");
  if (!testing::have_device(GetParam())) GTEST_SKIP() << "no GPU";
  const auto directory = testing::fixture("dpo");
  const Json expected = Json::load(directory / "expected.json");
  const SafetensorsFile gradients(directory / "expected.safetensors");
  const auto backend = make_backend(GetParam(), 2);
  const auto policy = load_model(*backend, directory / "policy", {.trainable = true});
  const auto reference = load_model(*backend, directory / "reference", {});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  PreferenceCriterion criterion(ctx, {.policy = *policy, .reference = reference.get()},
                                {.beta = expected.at("beta").as_double(),
                                 .label_smoothing = expected.at("label_smoothing").as_double()});
  const HostBatch batch = read_pairs(directory / "data.jsonl");
  const StepSize step{.weight = criterion.weight(batch), .batches = 1};
  criterion.begin(ctx, 0);
  criterion.add_gradients(ctx, batch, step, 0);
  const auto& rows = expected.at("rows").items();
  ASSERT_EQ(criterion.last_pairs().size(), rows.size());
  double loss = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const PairLogProbabilities& pair = criterion.last_pairs()[i];
    EXPECT_NEAR(pair.policy_chosen, rows[i].at("policy_chosen").as_double(), 1e-4);
    EXPECT_NEAR(pair.policy_rejected, rows[i].at("policy_rejected").as_double(), 1e-4);
    EXPECT_NEAR(pair.reference_chosen, rows[i].at("reference_chosen").as_double(), 1e-4);
    EXPECT_NEAR(pair.reference_rejected, rows[i].at("reference_rejected").as_double(), 1e-4);
    loss += rows[i].at("loss_smoothed").as_double() / static_cast<double>(rows.size());
  }
  EXPECT_NEAR(criterion.read(ctx, 0, step).loss, loss, 1e-5);
  size_t compared = 0;
  policy->for_each_parameter([&](nn::Parameter& p) {
    for (const auto& part : p.parts) {
      if (!gradients.find("grad." + part.name)) continue;
      const Tensor grad = p.grad_of(part);
      std::vector<float> values(static_cast<size_t>(grad.numel()));
      backend->download(grad, Tensor(values.data(), grad.shape(), Dtype::f32));
      EXPECT_LE(testing::relative_error({values.begin(), values.end()},
                                        testing::read_values(gradients, "grad." + part.name)),
                2e-4)
          << part.name;
      ++compared;
    }
  });
  EXPECT_EQ(compared, gradients.entries().size());
}

INSTANTIATE_TEST_SUITE_P(All, DpoFixture, ::testing::ValuesIn(testing::devices()),
                         [](const auto& c) { return c.param; });

}  // namespace
}  // namespace mixtral
