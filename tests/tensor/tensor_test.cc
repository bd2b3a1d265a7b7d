#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace mixtral {
namespace {

TEST(Shape, CountsAndCompares) {
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{2, 3, 4, 5}).numel(), 120);
  EXPECT_EQ((Shape{2, 0, 3}).numel(), 0);
  EXPECT_EQ((Shape{2, 3}).to_string(), "[2, 3]");
  EXPECT_EQ(Shape{}.to_string(), "[]");
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), InternalError);
}

TEST(Tensor, ViewsShareTheirMemory) {
  std::vector<float> values(24);
  std::iota(values.begin(), values.end(), 0.f);
  const Tensor x = Tensor(std::span(values)).reshape({2, 3, 4});
  EXPECT_EQ(x.dim(1), 3);
  EXPECT_EQ(x.bytes(), 96);
  EXPECT_EQ(x[1].shape(), (Shape{3, 4}));
  EXPECT_EQ(x[1][2].as<float>()[3], 23.f);
  EXPECT_EQ(x.slice(1, 2).shape(), (Shape{1, 3, 4}));
  EXPECT_EQ(x.slice(1, 2).as<float>()[0], 12.f);
  EXPECT_EQ(x.slice(1, 1).numel(), 0);
  EXPECT_EQ(x.view(5, {2, 2}).as<float>()[3], 8.f);
  EXPECT_EQ(x.reshape({6, 4})[5].as<float>()[0], 20.f);
  x.as<float>()[0] = 7;
  EXPECT_EQ(values[0], 7.f);
  const Tensor four = x.reshape({2, 3, 2, 2});
  EXPECT_EQ(four[1].shape(), (Shape{3, 2, 2}));
  EXPECT_EQ(four.slice(0, 1).shape(), (Shape{1, 3, 2, 2}));
}

TEST(Tensor, MisuseIsCaught) {
  std::vector<float> values(6);
  const Tensor x = Tensor(std::span(values)).reshape({2, 3});
  EXPECT_THROW(x.as<double>(), InternalError);
  EXPECT_THROW(x.reshape({7}), InternalError);
  EXPECT_THROW(x.slice(0, 3), InternalError);
  EXPECT_THROW(x.slice(2, 1), InternalError);
  EXPECT_THROW(x[2], InternalError);
  EXPECT_THROW(x[0][0], InternalError);
  EXPECT_THROW(x.view(4, {3}), InternalError);
}

TEST(Tensor, ADefaultOneIsEmpty) {
  const Tensor none;
  EXPECT_TRUE(none.empty());
  EXPECT_FALSE(none);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_TRUE(none.span<float>().empty());
}

}  // namespace
}  // namespace mixtral
