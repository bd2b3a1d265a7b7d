#include "base/random.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace mixtral {
namespace {

// The known answers that Random123 publishes for philox4x32-10.
TEST(Philox, GivesThePublishedAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, ContinuesFromItsThreeNumbers) {
  RandomStream whole(42, 3);
  for (int i = 0; i < 101; ++i) whole.next();
  RandomStream resumed(whole.seed(), whole.stream(), whole.position());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(whole.next(), resumed.next()) << i;
}

TEST(RandomStream, SeedsAndStreamsDiffer) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 20; ++seed)
    for (uint64_t stream = 0; stream < 20; ++stream) {
      RandomStream random(seed, stream);
      for (int i = 0; i < 10; ++i) seen.insert(random.next());
    }
  EXPECT_EQ(seen.size(), 4000u);
}

TEST(RandomStream, BelowIsUniformAndInRange) {
  RandomStream random(1);
  for (const uint64_t n : {1u, 2u, 3u, 7u, 10u}) {
    std::vector<int> counts(n);
    constexpr int kDraws = 20000;
    for (int i = 0; i < kDraws; ++i) {
      const uint64_t value = random.below(n);
      ASSERT_LT(value, n);
      ++counts[value];
    }
    const double expected = static_cast<double>(kDraws) / static_cast<double>(n);
    for (const int count : counts) EXPECT_NEAR(count, expected, 5 * std::sqrt(expected)) << n;
  }
  for (int i = 0; i < 1000; ++i) EXPECT_LT(random.below(~uint64_t{0}), ~uint64_t{0});
}

TEST(RandomStream, HasTheMomentsOfItsDistributions) {
  RandomStream random(2);
  double sum = 0, normal = 0, square = 0, fourth = 0;
  constexpr int kDraws = 200000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    const double z = random.normal();
    ASSERT_TRUE(std::isfinite(z));
    normal += z;
    square += z * z;
    fourth += z * z * z * z;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  EXPECT_NEAR(normal / kDraws, 0, 0.015);
  EXPECT_NEAR(square / kDraws, 1, 0.02);
  EXPECT_NEAR(fourth / kDraws, 3, 0.15);
}

TEST(UnitFloat, CoversItsInterval) {
  EXPECT_EQ(unit_float(0), 0.f);
  EXPECT_LT(unit_float(~0u), 1.f);
  EXPECT_GT(unit_float_open(0), 0.f);
  EXPECT_EQ(unit_float_open(~0u), 1.f);
}

}  // namespace
}  // namespace mixtral
