// Mixed precision: where bytes go, and that a budget is kept.
#include "convert/type_plan.h"

#include <gtest/gtest.h>

#include <cmath>

namespace mixtral {
namespace {

TensorId w1(int64_t layer, int64_t expert) {
  return {.kind = TensorKind::w1, .layer = layer, .expert = expert};
}

OutputTensor tensor(const std::string& name, std::vector<TensorId> parts, const char* type,
                    int64_t columns = 256) {
  return {.name = name,
          .parts = std::move(parts),
          .stacked = true,
          .part_shape = {64, columns},
          .type = {.format = *ops::find_weight_format(type)}};
}

class Planner : public ::testing::Test {
 protected:
  TypePlanner planner() const { return {outputs_, sensitivity_}; }

  const std::vector<OutputTensor> outputs_ = {
      tensor("loud", {w1(0, 0), w1(0, 1)}, "q4_k"), tensor("soft", {w1(1, 0), w1(1, 1)}, "q4_k"),
      tensor("norm", {{.kind = TensorKind::final_norm}}, "f32"),
      tensor("embedding", {{.kind = TensorKind::embedding}}, "q4_k")};
  const Sensitivity sensitivity_{
      .noise = {{w1(0, 0), 3e-4}, {w1(0, 1), 1e-4}, {w1(1, 0), 1e-6}, {w1(1, 1), 1e-6}},
      .tokens = {}};
};

TEST_F(Planner, BeginsWithTheFewestBits) {
  const TypePlanner least = planner();
  EXPECT_NEAR(least.noise(), 4.02e-4, 1e-9);
  const uint64_t numbers = 64 * 256;
  EXPECT_EQ(least.bytes(), 2 * 2 * numbers * 9 / 16 + numbers * 4 + numbers * 9 / 16);
}

TEST_F(Planner, GivesBitsWhereTheyLowerTheNoiseMostAndKeepsTheSize) {
  const uint64_t least = planner().bytes();
  for (uint64_t more = 0; more < 40000; more += 1000) {
    TypePlanner plan = planner();
    plan.fill(least + more);
    EXPECT_LE(plan.bytes(), least + more);
    const TypePlan types = plan.types();
    const auto bits = [&](const char* name) { return types.at(name).format.row().bits; };
    EXPECT_GE(bits("loud"), bits("soft")) << more;
    EXPECT_EQ(types.at("embedding").name(), "q4_k") << "nothing is known of it";
    EXPECT_EQ(types.at("norm").name(), "f32");
  }
  TypePlanner all = planner();
  all.fill(~uint64_t{0});
  EXPECT_EQ(all.types().at("soft").name(), "q8_0");
}

TEST_F(Planner, StopsWhereTheNoiseIsLowEnough) {
  TypePlanner plan = planner();
  plan.quieten(1.1e-4, ~uint64_t{0});
  EXPECT_LE(plan.noise(), 1.1e-4);
  EXPECT_EQ(plan.types().at("loud").name(), "q5_k");
  EXPECT_EQ(plan.types().at("soft").name(), "q4_k");
  TypePlanner tight = planner();
  tight.quieten(1e-9, tight.bytes() + 100);  // no room for any step
  EXPECT_EQ(tight.bytes(), planner().bytes());
}

TEST(Ladder, HasWhatTheColumnsAllow) {
  const auto names = [](const char* type, int64_t columns) {
    std::string all;
    for (const StoredType& rung : type_ladder({.format = *ops::find_weight_format(type)}, columns))
      all += rung.name() + " ";
    return all;
  };
  EXPECT_EQ(names("q4_k", 512), "q4_k q5_k q6_k q8_0 ");
  EXPECT_EQ(names("q5_0", 96), "q5_0 q5_1 q8_0 ");
  EXPECT_EQ(names("f16", 48), "f16 ");
  const auto groups = type_ladder({.format = ops::WeightFormat::bf16, .bits = 4, .group = 64}, 128);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[1].name(), "int8 in groups of 64");
}

}  // namespace
}  // namespace mixtral
