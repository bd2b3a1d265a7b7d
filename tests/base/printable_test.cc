#include "base/printable.h"

#include <gtest/gtest.h>

namespace mixtral {
namespace {

TEST(Escaped, ShowsWhatATerminalWouldObey) {
  const std::pair<std::string, std::string> cases[] = {
      {"plain text, größer, 模型, 🙂", "plain text, größer, 模型, 🙂"},
      {"a\x1b[2Jb", "a\\x1b[2Jb"},
      {"two\nlines\r\t", "two\\nlines\\r\\t"},
      {std::string("nul\0", 4), "nul\\x00"},
      {"del\x7f", "del\\x7f"},
      {"csi\xc2\x9b", "csi\\u009b"},                   // U+009B, one of C1's
      {"\xe2\x80\xae", "\\u202e"},                     // right-to-left override
      {"\xe2\x81\xa6", "\\u2066"},                     // left-to-right isolate
      {"\xe2\x80\x8b", "\\u200b"},                     // zero-width space
      {"\xe2\x80\xa8\xe2\x80\xa9", "\\u2028\\u2029"},  // line and paragraph separators
      {"\xef\xbb\xbf", "\\ufeff"},
      {"\xf3\xa0\x81\x81", "\\U000e0041"},  // a tag character
      {"\xff\xc0\xaf", "\\xff\\xc0\\xaf"},  // bytes that are not UTF-8
      {"\xed\xa0\x80", "\\xed\\xa0\\x80"},  // half of a surrogate pair
      {"cut \xe2\x82", "cut \\xe2\\x82"},
  };
  for (const auto& [text, shown] : cases) {
    EXPECT_EQ(escaped(text), shown);
    EXPECT_EQ(escaped(escaped(text)), shown);
  }
}

TEST(Printable, QuotesTheBeginningInWholeCharacters) {
  EXPECT_EQ(printable("short"), "short");
  EXPECT_EQ(printable(std::string(81, 'a')), std::string(80, 'a') + "...");
  EXPECT_EQ(printable(std::string(79, 'a') + "\xe2\x82\xac"), std::string(79, 'a') + "...");
  EXPECT_EQ(printable(std::string(100, '\x80')).substr(0, 8), "\\x80\\x80");
}

}  // namespace
}  // namespace mixtral
