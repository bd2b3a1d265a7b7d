#include "io/parquet_encoding.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/files.h"

namespace mixtral {
namespace {

using namespace std::string_literals;

std::vector<ParquetValue> decoded(const EncodedValues& values, int count) {
  const ParquetPlace place{"t"};
  const auto decoder = make_decoder(values, place);
  std::vector<ParquetValue> result;
  for (int i = 0; i < count; ++i) result.push_back(decoder->next());
  return result;
}

// The examples of the format's description of encodings.
TEST(Parquet, DifferencesAreAdded) {
  const auto numbers = [](const std::string& bytes, int count) {
    std::vector<int64_t> result;
    for (const ParquetValue& value :
         decoded({.bytes = bytes, .encoding = 5, .type = ParquetType::int64, .most = 8}, count))
      result.push_back(static_cast<int64_t>(value.bits));
    return result;
  };
  EXPECT_EQ(numbers("\x80\x01\x04\x05\x02\x02\0\0\0\0"s, 5), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(numbers("\x80\x01\x04\x08\x0E\x03\x02\0\0\0\xC0\x3F\0\0\0\0\0\0"s, 8),
            (std::vector<int64_t>{7, 5, 3, 1, 2, 3, 4, 5}));
  EXPECT_NE(
      message_of([&] { numbers("\x80\x01\x04\x05\x02\x02\0\0\0\0"s, 6); }).find("ends before"),
      std::string::npos);
  EXPECT_NE(message_of([&] { numbers("\x80\x01\x04\x09\x02"s, 1); }).find("more than its header"),
            std::string::npos);
  EXPECT_NE(message_of([&] { numbers("\x80\x01\x04\x05\x02\x02\x41\0\0\0"s, 5); }).find("65 bits"),
            std::string::npos);
  EXPECT_NE(message_of([&] { numbers("\x80\x01\x05\x05\x02"s, 5); }).find("no whole bytes"),
            std::string::npos);
}

TEST(Parquet, TextsOfDifferencesAreWhole) {
  const auto strings = [](const std::string& bytes, int encoding, int count) {
    std::string joined;
    const ParquetPlace place{"t"};
    const auto decoder = make_decoder({.bytes = bytes, .encoding = encoding, .most = 4}, place);
    for (int i = 0; i < count; ++i) joined.append(decoder->next().text).append("|");
    return joined;
  };
  // Lengths 4, 4, 6, 8 as 4 and the differences 0, 2, 2 in two bits each.
  const std::string lengths = "\x80\x01\x04\x04\x08\0\x02\0\0\0\x28\0\0\0\0\0\0\0"s;
  EXPECT_EQ(strings(lengths + "axisaxlebabblebabyhood", 6, 4), "axis|axle|babble|babyhood|");
  EXPECT_NE(message_of([&] { strings(lengths + "axis", 6, 2); }).find("ends before"),
            std::string::npos);
  // Shared 0, 2, 0, 3 and the rests' lengths 4, 2, 6, 5.
  const std::string shared = "\x80\x01\x04\x04\0\x03\x03\0\0\0\x44\x01"s + std::string(10, '\0'),
                    rests = "\x80\x01\x04\x04\x08\x03\x03\0\0\0\x70\x00"s + std::string(10, '\0');
  EXPECT_EQ(strings(shared + rests + "axislebabbleyhood", 7, 4), "axis|axle|babble|babyhood|");
}

TEST(Parquet, OtherEncodingsOfNumbers) {
  const std::string split("\x01\x02\0\0\0\0\0\0", 8);  // 1 and 2 of four bytes each
  const auto numbers = decoded({.bytes = split, .encoding = 9, .type = ParquetType::int32}, 2);
  EXPECT_EQ(numbers[0].bits, 1u);
  EXPECT_EQ(numbers[1].bits, 2u);
  const std::string flags("\x04\0\0\0\x04\x01\x03\x02", 8);  // two of a run, then packed ones
  std::string found;
  for (const ParquetValue& value :
       decoded({.bytes = flags, .encoding = 3, .type = ParquetType::boolean}, 5))
    found += value.bits != 0 ? '1' : '0';
  EXPECT_EQ(found, "11010");
  EXPECT_NE(message_of([&] {
              decoded({.bytes = split, .encoding = 4, .type = ParquetType::int32}, 1);
            }).find("BIT_PACKED"),
            std::string::npos);
}

}  // namespace
}  // namespace mixtral
