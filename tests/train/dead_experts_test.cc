#include "train/dead_experts.h"

#include <gtest/gtest.h>

namespace mixtral {
namespace {

RouterFigures loads(std::vector<std::vector<double>> load) {
  return {.load = std::move(load), .entropy = {}, .dead = 0};
}

TEST(DeadExpertWatch, SpeaksOnceAfterSeveralLines) {
  DeadExpertWatch watch;
  for (int64_t i = 1; i <= 3 * DeadExpertWatch::kLines; ++i) {
    const auto said = watch.look(10 * i, loads({{0.5, 0.5, 0}, {0, 1, 0}}));
    if (i != DeadExpertWatch::kLines) {
      EXPECT_TRUE(said.empty()) << said[0];
      continue;
    }
    ASSERT_EQ(said.size(), 2U);
    EXPECT_NE(said[0].find("expert 2 of layer 0 since step 10;"), std::string::npos) << said[0];
    EXPECT_NE(said[1].find("experts 0, 2 of layer 1 since step 10;"), std::string::npos) << said[1];
  }
  const auto said = watch.look(1000, loads({{0.5, 0.4, 0.1}, {0, 1, 0}}));
  ASSERT_EQ(said.size(), 1U);
  EXPECT_EQ(said[0], "step 1000: expert 2 of layer 0 took tokens again");
}

TEST(DeadExpertWatch, SaysNothingOfChance) {
  DeadExpertWatch watch;
  for (int64_t i = 1; i <= 50; ++i)
    EXPECT_TRUE(watch.look(i, loads({{i % 5 == 0 ? 0.1 : 0.0, 0.9}})).empty());
}

}  // namespace
}  // namespace mixtral
