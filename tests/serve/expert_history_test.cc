// Windows of the experts' load hold what was taken in their time.
#include "serve/expert_history.h"

#include <gtest/gtest.h>

namespace mixtral::serve {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ExpertHistoryTest : public ::testing::Test {
 protected:
  static ModelConfig config() {
    ModelConfig config;
    config.num_layers = 2;
    config.num_experts = 3;
    config.experts_per_token = 2;
    return config;
  }

  /// A step over one token at this time, which takes the first experts.
  void step(milliseconds at) {
    ++load_.tokens;
    for (const size_t i : {0, 1, 3, 4}) ++load_.taken[i];
    history_.note(load_, start_ + at);
  }
  ExpertHistory::Window window(std::optional<seconds> length, milliseconds now) const {
    return history_.window(length, start_ + now);
  }

  ExpertHistory::Clock::time_point start_ = ExpertHistory::Clock::now();
  ExpertLoad load_{config()};
  ExpertHistory history_{config(), start_};
};

TEST_F(ExpertHistoryTest, WithoutALengthItIsAllSinceTheStart) {
  EXPECT_EQ(window({}, seconds(3)).load.tokens, 0);
  for (int i = 1; i <= 50; ++i) step(milliseconds(100 * i));
  const ExpertHistory::Window all = window({}, seconds(10));
  EXPECT_EQ(all.load.tokens, 50);
  EXPECT_EQ(all.load.taken, (std::vector<int64_t>{50, 50, 0, 50, 50, 0}));
  EXPECT_EQ(all.experts_per_token, 2);
  EXPECT_EQ(all.seconds, 10);
}

TEST_F(ExpertHistoryTest, AWindowHoldsItsStepsToWithinASecondsWorth) {
  for (int i = 1; i <= 1000; ++i) step(milliseconds(100 * i));  // ten a second for 100 s
  for (const int64_t length : {2, 10, 60}) {
    const ExpertHistory::Window last = window(seconds(length), seconds(100));
    EXPECT_EQ(last.seconds, length);
    EXPECT_NEAR(static_cast<double>(last.load.tokens), 10.0 * static_cast<double>(length), 11);
    EXPECT_EQ(last.load.taken[0], last.load.tokens);
    EXPECT_EQ(last.load.taken[2], 0);
  }
}

TEST_F(ExpertHistoryTest, NothingOfBeforeAPauseCounts) {
  step(milliseconds(500));
  step(milliseconds(600));
  EXPECT_EQ(window(seconds(10), seconds(100)).load.tokens, 0);
  step(seconds(100));
  EXPECT_EQ(window(seconds(10), seconds(101)).load.tokens, 1);
  EXPECT_EQ(window(seconds(200), seconds(101)).load.tokens, 3);
  EXPECT_EQ(window(seconds(200), seconds(101)).seconds, 101);  // no longer than it runs
}

TEST_F(ExpertHistoryTest, TheLongestWindowIsKeptWhole) {
  for (int i = 1; i <= 2000; ++i) step(seconds(i));
  EXPECT_NEAR(static_cast<double>(window(ExpertHistory::kMost, seconds(2000)).load.tokens), 600, 1);
  EXPECT_EQ(window({}, seconds(2000)).load.tokens, 2000);
}

}  // namespace
}  // namespace mixtral::serve
