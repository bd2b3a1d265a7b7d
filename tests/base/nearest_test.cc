#include "base/nearest.h"

#include <gtest/gtest.h>

namespace mixtral {
namespace {

TEST(EditDistance, CountsChanges) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("batch-size", "batch_size"), 1u);
}

TEST(Nearest, SuggestsOnlyWhatIsClose) {
  const std::vector<std::string> names = {"learning-rate", "batch-size", "seed"};
  EXPECT_EQ(nearest("batchsize", names), "batch-size");
  EXPECT_EQ(nearest("lerning-rate", names), "learning-rate");
  EXPECT_EQ(nearest("sede", names), "seed");
  EXPECT_EQ(nearest("xyzzy", names), "");
  EXPECT_EQ(nearest("", names), "");
}

}  // namespace
}  // namespace mixtral
