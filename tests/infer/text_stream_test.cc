// Text comes out in whole characters, up to the first stop text, wherever the tokens' borders are.
#include "infer/text_stream.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "text/byte_tokenizer.h"

namespace mixtral {
namespace {

struct Case {
  const char* name;
  std::string text;  // its bytes are the tokens
  std::vector<std::string> stops;
  std::string expected;
  bool stopped = false;
};

TEST(TextStream, EndsAtTheFirstStopText) {
  const std::vector<Case> cases{
      {"no stop text", "one two", {}, "one two"},
      {"in the middle", "one. two", {". "}, "one", true},
      {"at the beginning", "###one", {"###"}, "", true},
      {"begun at the end", "one##", {"###"}, "one##"},
      {"begun, and something else", "one##two###", {"###"}, "one##two", true},
      {"overlapping itself", "aaab", {"aab"}, "a", true},
      {"the earliest of several", "one, two. three", {".", ","}, "one", true},
      {"the longer one that begins earlier", "abcd", {"bcd", "c"}, "ab", true},
      {"an empty one counts for nothing", "one", {""}, "one"},
      {"characters of several bytes", "é€😀 end", {" end"}, "é€😀", true},
      {"a stop text of several bytes", "a→b", {"→"}, "a", true},
  };
  const ByteTokenizer tokenizer;
  for (const Case& c : cases) {
    std::string streamed;
    TextStream stream(&tokenizer, c.stops, [&](std::string_view part) { streamed += part; });
    bool stopped = false;
    for (const char byte : c.text)
      stopped = stopped || stream.push(static_cast<unsigned char>(byte));
    stream.finish();
    EXPECT_EQ(stream.text(), c.expected) << c.name;
    EXPECT_EQ(streamed, c.expected) << c.name;
    EXPECT_EQ(stopped, c.stopped) << c.name;
  }
}

TEST(TextStream, GivesOutNoPartOfACharacter) {
  const ByteTokenizer tokenizer;
  TextStream stream(&tokenizer, {}, [](std::string_view part) { EXPECT_EQ(part, "€"); });
  stream.push(0xe2);
  stream.push(0x82);
  EXPECT_EQ(stream.text(), "");
  stream.push(0xac);
  EXPECT_EQ(stream.text(), "€");
}

TEST(TextStream, EndsAnUnfinishedCharacterWithReplacements) {
  const ByteTokenizer tokenizer;
  TextStream stream(&tokenizer, {});
  stream.push('a');
  stream.push(0xe2);
  stream.finish();
  EXPECT_EQ(stream.text(), "a\uFFFD");
}

TEST(TextStream, PassesOverTokensWithoutText) {
  const ByteTokenizer tokenizer;
  TextStream stream(&tokenizer, {});
  stream.push('a');
  stream.push(tokenizer.vocab_size() + 5);
  stream.push('b');
  EXPECT_EQ(stream.text(), "ab");
  TextStream none(nullptr, {"a"});
  EXPECT_FALSE(none.push('a'));
  none.finish();
  EXPECT_EQ(none.text(), "");
}

}  // namespace
}  // namespace mixtral
