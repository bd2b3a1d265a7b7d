#include "surgery/expert_clusters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mixtral {
namespace {

using ::testing::ElementsAre;

TEST(Cluster, JoinsTheClosestOnAverage) {
  const std::vector<std::vector<double>> points = {{0}, {10}, {1}, {11.5}, {30}};
  EXPECT_THAT(cluster(points, 5), ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2),
                                              ElementsAre(3), ElementsAre(4)));
  EXPECT_THAT(cluster(points, 4),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1), ElementsAre(3), ElementsAre(4)));
  EXPECT_THAT(cluster(points, 3),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3), ElementsAre(4)));
  EXPECT_THAT(cluster(points, 2), ElementsAre(ElementsAre(0, 1, 2, 3), ElementsAre(4)));
  EXPECT_THAT(cluster(points, 1), ElementsAre(ElementsAre(0, 1, 2, 3, 4)));
}

// Single linkage would chain 0, 1, 2, 3; average linkage looks at all members.
TEST(Cluster, DoesNotChain) {
  const std::vector<std::vector<double>> points = {{0}, {2}, {4.1}, {6.3}};
  EXPECT_THAT(cluster(points, 2), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
}

TEST(Cluster, TiesGoToTheFirst) {
  EXPECT_THAT(cluster({{1, 1}, {1, 1}, {1, 1}}, 2), ElementsAre(ElementsAre(0, 1), ElementsAre(2)));
}

}  // namespace
}  // namespace mixtral
