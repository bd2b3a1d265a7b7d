// What adapter_config.json says, and which tensors of zeros stand beside the adapter's own, so that
// PEFT reads the same updates (tests/interop/peft asks PEFT itself).
#include "model/peft_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "io/json.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

ModelConfig small() { return testing::uneven_config(); }

std::map<std::string, double> patterns(const PeftLayout& layout, const char* key) {
  std::map<std::string, double> result;
  const Json config = Json::parse(layout.config(), "config");
  for (const auto& [pattern, value] : config.at(key).members()) result[pattern] = value.as_double();
  return result;
}

PeftLayout layout_of(const AdapterSpec& spec) {
  return PeftLayout(new_adapter(spec, small()), small());
}

TEST(PeftLayout, EqualRanksAndScalesNeedNoPattern) {
  const PeftLayout layout =
      layout_of({.targets = {"q_proj", "gate", "w1", "w2", "w3", "lm_head"}, .rank = 4});
  EXPECT_THAT(patterns(layout, "rank_pattern"), IsEmpty());
  EXPECT_THAT(patterns(layout, "alpha_pattern"), IsEmpty());
  EXPECT_THAT(layout.zeros(), IsEmpty());
  EXPECT_THAT(layout.notes(), IsEmpty());
}

TEST(PeftLayout, ModulesAreNamedAsInTransformers4AndAsIn5) {
  using Expected = std::map<std::string, double>;
  const PeftLayout gate =
      layout_of({.targets = {"q_proj", "v_proj", "gate"}, .rank = 4, .rank_of = {{"gate", 2}}});
  EXPECT_EQ(patterns(gate, "rank_pattern"),
            (Expected{{"block_sparse_moe.gate", 2}, {"mlp.gate.weight", 2}}));
  const PeftLayout down =
      layout_of({.targets = {"w1", "w2", "w3"}, .rank = 4, .alpha = 8, .alpha_of = {{"w2", 3}}});
  EXPECT_EQ(patterns(down, "alpha_pattern"),
            (Expected{{"block_sparse_moe.experts.[0-9]+.w2", 3}, {"mlp.experts.down_proj", 3}}));
  const PeftLayout packed = layout_of(
      {.targets = {"gate_up_proj", "q_proj", "v_proj"}, .rank_of = {{"gate_up_proj", 2}}});
  EXPECT_EQ(patterns(packed, "rank_pattern"), (Expected{{"mlp.experts.gate_up_proj", 2}}));
}

TEST(PeftLayout, RootScalingOfPackedExpertsIsKept) {
  const PeftLayout layout =
      layout_of({.targets = {"w1", "w2", "w3"}, .rank = 4, .alpha = 8, .rslora = true});
  // PEFT would take 16 / √8, where each of the two has 8 / √4.
  EXPECT_NEAR(patterns(layout, "alpha_pattern").at("mlp.experts.gate_up_proj") / std::sqrt(8.0),
              8 / std::sqrt(4.0), 1e-12);
}

TEST(PeftLayout, TwoScalesUnderOneParameterAreRefusedByPeft) {
  const PeftLayout layout = layout_of({.targets = {"w1", "w2", "w3"}, .alpha_of = {{"w1", 3}}});
  EXPECT_EQ(patterns(layout, "rank_pattern").at("mlp.experts.gate_up_proj"), 0);
  EXPECT_THAT(layout.notes(), SizeIs(1));
}

TEST(PeftLayout, WhatIsPackedWithTunedExpertsIsWrittenAsZeros) {
  struct Case {
    std::vector<std::string> targets;
    std::vector<int64_t> experts;
    size_t tensors;  // of zeros, in two layers of three experts
  };
  for (const Case& c :
       {Case{{"w1"}, {}, 2 * 2 * 3 * 2}, Case{{"w1", "w3"}, {}, 2 * 3 * 2}, Case{{"w2"}, {}, 0},
        Case{{"w2"}, {1}, 2 * 2 * 2}, Case{{"w1", "w2", "w3"}, {0}, 2 * 3 * 2 * 2},
        Case{{"w1", "w3", "down_proj"}, {}, 0}}) {
    const PeftLayout layout = layout_of({.targets = c.targets, .experts = c.experts});
    EXPECT_THAT(layout.zeros(), SizeIs(c.tensors)) << c.targets[0] << c.targets.size();
  }
}

TEST(PeftLayout, OfTwoPackedParametersTheFirstStandsInside) {
  const auto gate_up_name = [](const std::vector<std::string>& targets) {
    const AdapterFile file = new_adapter({.targets = targets}, small());
    for (const AdapterModule& module : file.modules)
      if (module.target == "gate_up_proj") return PeftLayout(file, small()).name(module, 'A', 0);
    return std::string();
  };
  const std::string prefix = "base_model.model.model.layers.0.mlp.experts.";
  EXPECT_EQ(gate_up_name({"gate_up_proj"}), prefix + "lora_A.weight");
  EXPECT_EQ(gate_up_name({"gate_up_proj", "down_proj"}), prefix + "base_layer.lora_A.weight");
  EXPECT_EQ(gate_up_name({"gate_up_proj", "w2"}), prefix + "base_layer.lora_A.weight");
}

TEST(PeftLayout, DropoutOfParametersIsLeftOut) {
  const auto dropout = [](const char* target) {
    const PeftLayout layout = layout_of({.targets = {target}, .dropout = 0.25});
    return Json::parse(layout.config(), "config").at("lora_dropout").as_double();
  };
  EXPECT_EQ(dropout("q_proj"), 0.25);
  EXPECT_EQ(dropout("gate"), 0);
  EXPECT_EQ(dropout("w2"), 0);
}

TEST(NewAdapter, RanksHaveBounds) {
  for (const int64_t rank : {int64_t{0}, int64_t{-1}, int64_t{65537}, int64_t{1000000000}}) {
    EXPECT_THROW(new_adapter({.targets = {"q_proj"}, .rank = rank}, small()), UsageError);
    EXPECT_THROW(new_adapter({.targets = {"q_proj"}, .rank_of = {{"q_proj", rank}}}, small()),
                 UsageError);
  }
}

}  // namespace
}  // namespace mixtral
