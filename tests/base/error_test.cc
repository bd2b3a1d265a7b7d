#include "base/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mixtral {
namespace {

TEST(Check, SaysWhatFailedAndWhere) {
  EXPECT_NO_THROW(CHECK(1 + 1 == 2));
  try {
    CHECK(1 + 1 == 3, "arithmetic");
    FAIL();
  } catch (const InternalError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("error_test.cc"));
    EXPECT_THAT(error.what(), testing::HasSubstr("1 + 1 == 3 (arithmetic)"));
  }
}

TEST(Errors, UsageErrorsAreErrorsAndDefectsAreNot) {
  EXPECT_THROW(throw UsageError("flag"), Error);
  EXPECT_FALSE((std::is_base_of_v<Error, InternalError>));
}

}  // namespace
}  // namespace mixtral
