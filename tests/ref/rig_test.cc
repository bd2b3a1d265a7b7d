// The comparison that the parity tests rest on finds what it should.
#include "tests/support/rig.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "ref/backend.h"

namespace mixtral::test {
namespace {

using testing::HasSubstr;

void scaled_sum(Rig& rig) {
  rig.run(ops::AddScaled{rig.input("x", {40}), rig.updated("y", {40}), 0.5});
}

class RigTest : public testing::Test {
 protected:
  RigTest() : reference_(backend_, Dtype::f32, 1) {
    scaled_sum(reference_);
    reference_.execute();
  }
  float* element(const Rig& rig, size_t operand, int64_t i) {
    return rig.operands()[operand].tensor.as<float>() + i;
  }

  ref::RefBackend backend_;
  Rig reference_;
};

TEST_F(RigTest, EqualResultsPass) {
  Rig tested(backend_, reference_);
  scaled_sum(tested);
  tested.execute();
  EXPECT_EQ(difference(reference_, tested), "");
  EXPECT_EQ(bit_difference(reference_, tested), "");
}

TEST_F(RigTest, ASmallErrorPassesAndALargerOneDoesNot) {
  Rig tested(backend_, reference_);
  scaled_sum(tested);
  tested.execute();
  *element(tested, 1, 39) += 1e-6F;
  EXPECT_EQ(difference(reference_, tested), "");
  EXPECT_THAT(bit_difference(reference_, tested), HasSubstr("element 39"));
  *element(tested, 1, 39) += 1e-4F;
  EXPECT_THAT(difference(reference_, tested), HasSubstr("element 39"));
}

TEST_F(RigTest, OverwrittenNeighboursAreFound) {
  for (int64_t at : {-1, 40}) {
    Rig tested(backend_, reference_);
    scaled_sum(tested);
    tested.execute();
    *element(tested, 1, at) = 0;
    EXPECT_THAT(difference(reference_, tested), HasSubstr("bytes beside it"));
  }
}

TEST_F(RigTest, ChangedInputsAreFound) {
  Rig tested(backend_, reference_);
  scaled_sum(tested);
  tested.execute();
  *element(tested, 0, 3) += 1;
  EXPECT_THAT(difference(reference_, tested), HasSubstr("x: an input was changed"));
}

TEST_F(RigTest, ElementsThatWereNotWrittenAreFound) {
  Rig reference(backend_, Dtype::f32, 1);
  reference.run(ops::Fill{reference.output("x", {8}), 2});
  reference.execute();
  Rig tested(backend_, reference);
  tested.run(ops::Fill{tested.output("x", {8}), 2});
  tested.execute();
  *element(tested, 0, 7) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(difference(reference, tested), HasSubstr("element 7 is nan"));
}

TEST_F(RigTest, ShiftedOperandsHoldTheSameValues) {
  Rig tested(backend_, reference_, 1);
  scaled_sum(tested);
  tested.execute();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(element(tested, 0, 0)) % 8, 4U);
  EXPECT_EQ(bit_difference(reference_, tested), "");
}

}  // namespace
}  // namespace mixtral::test
