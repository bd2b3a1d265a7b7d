#include "train/schedule.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace mixtral {
namespace {

using Kind = Schedule::Kind;

struct Case {
  Schedule schedule;
  int64_t step;
  double rate;
};

TEST(Schedule, HasTheRatesOfTheTable) {
  const Schedule constant{
      .kind = Kind::constant, .peak = 1, .least = 0, .warmup = 0, .iterations = 10};
  const Schedule warm{.kind = Kind::constant, .peak = 1, .least = 0, .warmup = 4, .iterations = 10};
  const Schedule cosine{
      .kind = Kind::cosine, .peak = 1, .least = 0.1, .warmup = 10, .iterations = 110};
  const Schedule wsd{.kind = Kind::wsd,
                     .peak = 1,
                     .least = 0,
                     .warmup = 10,
                     .iterations = 100,
                     .decay_fraction = 0.2};
  const Case cases[] = {
      {constant, 1, 1},   {constant, 10, 1},  {warm, 1, 0.25}, {warm, 4, 1},
      {warm, 5, 1},       {cosine, 5, 0.5},   {cosine, 10, 1}, {cosine, 60, 0.55},
      {cosine, 110, 0.1}, {cosine, 500, 0.1}, {wsd, 10, 1},    {wsd, 80, 1},
      {wsd, 90, 0.5},     {wsd, 100, 0},
  };
  for (const Case& c : cases)
    EXPECT_NEAR(c.schedule.at(c.step), c.rate, 1e-12)
        << to_string(c.schedule.kind) << " step " << c.step;
}

TEST(Schedule, NeverRisesAfterTheWarmUpNorLeavesItsRange) {
  for (const Kind kind : {Kind::constant, Kind::cosine, Kind::wsd}) {
    const Schedule s{.kind = kind, .peak = 3e-3, .least = 3e-4, .warmup = 7, .iterations = 50};
    for (int64_t step = 1; step <= 60; ++step) {
      EXPECT_GT(s.at(step), 0);
      EXPECT_LE(s.at(step), 3e-3);
      if (step > 7) {
        EXPECT_LE(s.at(step), s.at(step - 1)) << step;
        EXPECT_GE(s.at(step), 3e-4) << step;
      }
    }
  }
}

TEST(Schedule, RefusesWhatMakesNoSense) {
  EXPECT_THROW((Schedule{.peak = -1}).validate(), UsageError);
  EXPECT_THROW((Schedule{.peak = 1, .least = 2}).validate(), UsageError);
  EXPECT_THROW((Schedule{.warmup = 20, .iterations = 10}).validate(), UsageError);
  EXPECT_THROW((Schedule{.iterations = 0}).validate(), UsageError);
  EXPECT_THROW((Schedule{.decay_fraction = 0}).validate(), UsageError);
  EXPECT_THROW(parse_schedule("linear"), UsageError);
  EXPECT_EQ(parse_schedule("wsd"), Kind::wsd);
}

}  // namespace
}  // namespace mixtral
