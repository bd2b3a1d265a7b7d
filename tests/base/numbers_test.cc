#include "base/numbers.h"

#include <gtest/gtest.h>

#include <limits>

namespace mixtral {
namespace {

TEST(Numbers, AreReadAsWrittenOrNotAtAll) {
  EXPECT_EQ(parse_integer("010"), 10);
  EXPECT_EQ(parse_integer("-7"), -7);
  EXPECT_EQ(parse_integer("+7"), 7);
  EXPECT_EQ(parse_integer("9223372036854775807"), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parse_unsigned("18446744073709551615"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(parse_number("1e-3"), 0.001);
  for (const char* text : {"", " 1", "1 ", "0x10", "1_000", "1.5", "--1", "+-1", "+", "-",
                           "9223372036854775808", "one"})
    EXPECT_FALSE(parse_integer(text)) << text;
  for (const char* text : {"-1", "18446744073709551616"})
    EXPECT_FALSE(parse_unsigned(text)) << text;
  for (const char* text : {"", "0x1p3", "1,5", "1e999", "1 e3"})
    EXPECT_FALSE(parse_number(text)) << text;
}

}  // namespace
}  // namespace mixtral
