#include "io/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "base/random.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

using ::testing::HasSubstr;

TEST(Json, ReadsEveryKind) {
  const Json json = Json::parse(
      R"({"n":null,"t":true,"f":false,"i":-7,"x":1.5,"s":"a\u00e9\ud83d\ude00\n","a":[1,[2]],"o":{}})",
      "text");
  EXPECT_TRUE(json.at("n").is_null());
  EXPECT_TRUE(json.at("t").as_bool());
  EXPECT_FALSE(json.at("f").as_bool());
  EXPECT_EQ(json.at("i").as_int(), -7);
  EXPECT_EQ(json.at("i").as_double(), -7.0);
  EXPECT_EQ(json.at("x").as_double(), 1.5);
  EXPECT_EQ(json.at("s").as_string(), "a\xc3\xa9\xf0\x9f\x98\x80\n");
  EXPECT_EQ(json.at("a").items().size(), 2u);
  EXPECT_EQ(json.at("a").items()[1].items()[0].as_int(), 2);
  EXPECT_TRUE(json.at("o").members().empty());
  EXPECT_EQ(json.find("absent"), nullptr);
  EXPECT_EQ(json.members().front().first, "n");
  EXPECT_EQ(json.members().back().first, "o");
}

TEST(Json, ReadsScalarsAsWholeText) {
  EXPECT_TRUE(Json::parse(" null ", "t").is_null());
  EXPECT_EQ(Json::parse("12", "t").as_int(), 12);
  EXPECT_EQ(Json::parse("\"x\"", "t").as_string(), "x");
  EXPECT_EQ(Json::parse("2.5e3\n", "t").as_double(), 2500);
  EXPECT_TRUE(Json::parse("true", "t").as_bool());
}

TEST(Json, KeepsIntegersExact) {
  EXPECT_EQ(Json::parse("9223372036854775807", "t").as_int(), INT64_MAX);
  EXPECT_EQ(Json::parse("-9223372036854775808", "t").as_int(), INT64_MIN);
  EXPECT_EQ(Json::parse("1e6", "t").as_int(), 1000000);
  EXPECT_EQ(Json::parse("5.0", "t").as_int(), 5);
  for (const char* text : {"1.5", "1e30", "9223372036854775808", "18446744073709551616",
                           "-9223372036854775809", "1e18"})
    EXPECT_THAT(message_of([&] { Json::parse(text, "t").as_int(); }),
                HasSubstr("expected an integer"))
        << text;
  EXPECT_EQ(Json::parse("18446744073709551616", "t").as_double(), 0x1p64);
  EXPECT_EQ(Json::parse("18446744073709551615 ", "t").as_double(), 0x1p64);
  EXPECT_EQ(Json::parse("-18446744073709551616", "t").as_double(), -0x1p64);
  EXPECT_EQ(Json::parse("1" + std::string(300, '0'), "t").as_double(), 1e300);
  EXPECT_THROW(Json::parse("1" + std::string(310, '0'), "t"), Error);
}

TEST(Json, ReadsFractionsOfAnyLength) {
  EXPECT_EQ(Json::parse("0.0184463770447040701844637704470400", "t").as_double(),
            0.01844637704470407);
  EXPECT_EQ(Json::parse("1e-400", "t").as_double(), 0);
  EXPECT_TRUE(std::signbit(Json::parse("-1e-400", "t").as_double()));
  EXPECT_EQ(Json::parse("4.9e-324", "t").as_double(), 4.9e-324);
  EXPECT_EQ(Json::parse("1.7976931348623157e308", "t").as_double(), 1.7976931348623157e308);
  EXPECT_THROW(Json::parse("1.8e308", "t"), Error);
  RandomStream random(9);
  for (int i = 0; i < 20000; ++i) {
    std::string text = random.below(2) ? "-" : "";
    text += random.below(2) ? "0." : "7";
    const uint64_t digits = 1 + random.below(40);
    for (uint64_t j = 0; j < digits; ++j)
      text += static_cast<char>('0' + random.below(random.below(2) ? 10 : 1));
    if (text.find('.') == std::string::npos && random.below(2)) text += ".25";
    if (random.below(2)) text += "e" + std::to_string(static_cast<int>(random.below(40)) - 20);
    ASSERT_EQ(Json::parse(text, "t").as_double(), std::strtod(text.c_str(), nullptr)) << text;
  }
}

TEST(Json, KindErrorsNameSourceAndKey) {
  const Json json = Json::parse(R"({"a":{"b":[1,{"c":"x"},[2]]}})", "m/config.json");
  EXPECT_EQ(message_of([&] { json.at("a").at("b").items()[1].at("c").as_int(); }),
            "m/config.json: a.b[1].c: expected an integer, found a string");
  EXPECT_EQ(message_of([&] { json.at("a").at("b").items()[2].items()[0].as_string(); }),
            "m/config.json: a.b[2][0]: expected a string, found a number");
  EXPECT_EQ(message_of([&] { json.at("a").at("z"); }),
            "m/config.json: a: the key \"z\" is missing");
  EXPECT_EQ(message_of([&] { json.items(); }), "m/config.json: expected an array, found an object");
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "empty"},
      {"  ", "empty"},
      {"\xef\xbb\xbf{}", "byte order mark"},
      {"{\"a\":1,\"a\":2}", "\"a\" appears twice"},
      {"{\"a\":1,\"\\u0061\":2}", "\"a\" appears twice"},
      {"\"\xff\"", "UTF-8"},
      {"\"\xc0\x80\"", "UTF-8"},
      {"\"\xed\xa0\x80\"", "UTF-8"},
      {"\"\\ud800\"", "surrogate"},
      {"\"\\udc00\"", "surrogate"},
      {"\"\\ud800\\ud800\"", "surrogate"},
      {"{\"\\udc00\":1}", "surrogate"},
      {"{} x", "more text"},
      {"1 2", "more text"},
      {"[1]]", "not valid JSON"},
      {"[1,]", "not valid JSON"},
      {"{\"a\":1,}", "not valid JSON"},
      {"[1 2]", "not valid JSON"},
      {"{\"a\" 1}", "not valid JSON"},
      {"{a:1}", "not valid JSON"},
      {"[", "not valid JSON"},
      {"{\"a\":", "not valid JSON"},
      {"\"abc", "not closed"},
      {"\"a\nb\"", "control character"},
      {"\"\\x\"", "not valid JSON"},
      {"NaN", "not valid JSON"},
      {"Infinity", "not valid JSON"},
      {"-Infinity", "not valid JSON"},
      {"[nul]", "not valid JSON"},
      {"truex", "not valid JSON"},
      {"01", "not valid JSON"},
      {"1.", "not valid JSON"},
      {".5", "not valid JSON"},
      {"+1", "not valid JSON"},
      {"1e400", "not valid JSON"},
      {"0x10", "not valid JSON"},
      {"'a'", "not valid JSON"},
      {"// c\n1", "not valid JSON"},
      {std::string("1\0", 2), "not valid JSON"},
      {std::string(65, '[') + std::string(65, ']'), "deeper than 64"},
      {std::string(100000, '['), "deeper than 64"},
  };
  for (const auto& row : cases) {
    const auto& text = row.first;
    const char* words = row.second;
    const std::string message = message_of([&] { Json::parse(text, "file.json"); });
    EXPECT_THAT(message, HasSubstr(words)) << text.substr(0, 40);
    EXPECT_THAT(message, testing::StartsWith("file.json: ")) << text.substr(0, 40);
  }
}

TEST(Json, LimitsAreTheCallers) {
  EXPECT_NO_THROW(Json::parse("[[[1]]]", "t", {.bytes = 7, .depth = 3}));
  EXPECT_THAT(message_of([] { Json::parse("[[[1]]]", "t", {.bytes = 6}); }), HasSubstr("7 bytes"));
  EXPECT_THAT(message_of([] { Json::parse("[[[1]]]", "t", {.depth = 2}); }), HasSubstr("deeper"));
  EXPECT_NO_THROW(Json::parse(std::string(512, '[') + std::string(512, ']'), "t", {.depth = 512}));
}

TEST(Json, CopiesOutliveTheirRoot) {
  std::vector<Json> kept;
  {
    const Json json = Json::parse(R"({"a":["x","y"]})", "s");
    kept.push_back(json.at("a"));
    kept.push_back(json.at("a").items()[1]);
  }
  EXPECT_EQ(kept[0].items()[0].as_string(), "x");
  EXPECT_EQ(kept[1].where(), "s: a[1]");
}

}  // namespace
}  // namespace mixtral
