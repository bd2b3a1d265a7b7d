#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "cpu/expected_weights.h"

namespace mixtral::cpu {
namespace {

using Place = ExpectedWeights::Place;

struct Model {
  std::vector<uint8_t> dense = std::vector<uint8_t>(4096), router = std::vector<uint8_t>(256),
                       up = std::vector<uint8_t>(4 * 8192), down = std::vector<uint8_t>(4 * 2048);
  std::vector<Place> dense_places{{0, 0, 2048}, {0, 2048, 1024}}, router_places{{0, 0, 256}},
      up_places{{0, 0, 8192}, {1, 4096, 512}}, down_places{{0, 0, 1024}, {0, 1024, 1024}};
};

class Steps {
 public:
  explicit Steps(ExpectedWeights& expected) : expected_(expected) {}
  void dense() { expected_.begin({model.dense.data(), 1, 4096}, nullptr, model.dense_places); }
  void router() { expected_.begin({model.router.data(), 1, 256}, nullptr, model.router_places); }
  void up(const std::vector<int32_t>& offsets) {
    expected_.begin({model.up.data(), 4, 8192}, offsets.data(), model.up_places);
  }
  void down(const std::vector<int32_t>& offsets) {
    expected_.begin({model.down.data(), 4, 2048}, offsets.data(), model.down_places);
  }
  void step(const std::vector<int32_t>& offsets) {
    dense();
    router();
    up(offsets);
    down(offsets);
  }

  Model model;

 private:
  ExpectedWeights& expected_;
};

void expect_target(const ExpectedWeights& expected, int thread, const uint8_t* data, size_t bytes) {
  const auto target = expected.target(thread);
  EXPECT_EQ(target.size(), bytes);
  if (bytes > 0) {
    EXPECT_EQ(target.data(), data);
  }
}

TEST(ExpectedWeights, AreThoseThatCameNextBefore) {
  ExpectedWeights expected(3);
  Steps steps(expected);
  for (int thread = 0; thread < 3; ++thread) expect_target(expected, thread, nullptr, 0);
  steps.step({0, 1, 1, 2, 2});
  steps.dense();  // the router comes next; all fetch what the first thread needs
  for (int thread = 0; thread < 3; ++thread)
    expect_target(expected, thread, steps.model.router.data(), 256);
  steps.router();  // experts, but which?
  for (int thread = 0; thread < 3; ++thread) expect_target(expected, thread, nullptr, 0);
  const std::vector<int32_t> offsets{0, 0, 1, 1, 2};  // the second and the fourth
  expected.route(offsets.data(), 4);
  expect_target(expected, 0, steps.model.up.data() + 8192, 8192);
  expect_target(expected, 1, steps.model.up.data() + 3 * 8192 + 4096, 512);
  steps.up(offsets);
  expect_target(expected, 0, steps.model.down.data() + 2048, 1024);
  expect_target(expected, 1, steps.model.down.data() + 2048 + 1024, 1024);
  steps.down(offsets);
  expect_target(expected, 0, steps.model.dense.data(), 2048);
  expect_target(expected, 1, steps.model.dense.data() + 2048, 1024);
  for (int thread = 0; thread < 3; ++thread)
    for (int i = 0; i < 1000; ++i) expected.fetch(thread);
}

TEST(ExpectedWeights, FollowAnotherOrder) {
  ExpectedWeights expected(1);
  Steps steps(expected);
  const std::vector<int32_t> offsets{0, 1, 1, 2, 2};
  steps.step(offsets);
  steps.dense();
  steps.down(offsets);
  steps.dense();
  expect_target(expected, 0, nullptr, 0);  // experts, but which?
  expected.route(offsets.data(), 4);
  expect_target(expected, 0, steps.model.down.data(), 1024);
}

/// One group with rows where there were two before.
TEST(ExpectedWeights, HaveNoPlaceInAGroupThatIsNotThere) {
  ExpectedWeights expected(2);
  Steps steps(expected);
  steps.step({0, 1, 1, 2, 2});
  steps.dense();
  steps.router();
  const std::vector<int32_t> offsets{0, 0, 2, 2, 2};
  expected.route(offsets.data(), 4);
  expect_target(expected, 0, steps.model.up.data() + 8192, 8192);
  expect_target(expected, 1, nullptr, 0);
  expected.route(offsets.data(), 3);  // another model's
  expect_target(expected, 0, steps.model.up.data() + 8192, 8192);
}

}  // namespace
}  // namespace mixtral::cpu
