#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "constrain/grammar.h"
#include "tests/support/files.h"

namespace mixtral::constrain {
namespace {

using testing::HasSubstr;

struct Case {
  std::string expression;
  std::vector<std::string> matched, refused;
};

TEST(ConstrainRegex, MatchesWholeTexts) {
  const std::vector<Case> cases = {
      {"", {""}, {"a"}},
      {"(ab|c){2,3}[.!?]", {"abab.", "ccc!", "abcab?"}, {"ab.", "cccc!", "abab", "abab.."}},
      {"^a|b$", {"a", "b"}, {"ab", ""}},
      {"^(?:a|b)+$|^$", {"", "abba"}, {"c"}},
      {"(^a$)|(^b$)", {"a", "b"}, {"ab"}},
      {"a*?b+?c??", {"b", "aabbc"}, {"ac"}},
      {"[^a-c]", {"d", "é", "€", "😀", "\n"}, {"a", "", "dd"}},
      {"[à-ü]", {"à", "é", "ü"}, {"a", "\xc3", "ÿ"}},
      {".", {"a", "é", "😀"}, {"\n", "\r", "", "\xff"}},
      {"\\d\\D", {"1a", "0é"}, {"11", "a1", "1٣"}},
      {"\\w+", {"aZ_09"}, {"é", "-"}},
      {"\\W", {"-", " "}, {"a", "é", "_"}},
      {"[^\\w]", {"-"}, {"a", "é"}},
      {"\\s\\S", {" a", "\té"}, {"a ", "  ", " \xc2\xa0"}},
      {"[\\d.,-]+", {"1,5-2."}, {"a"}},
      {"\\p{Lu}\\p{Ll}*", {"Été", "A"}, {"été", "A1"}},
      {"\\P{L}", {"1"}, {"a", "é"}},
      {"\\x41\\u00e9\\u{1F600}\\uD83D\\uDE00", {"Aé😀😀"}, {"Ae😀😀"}},
      {"{}a{x}", {"{}a{x}"}, {"a"}},
      {"(?<y>[0-9]{4})-(?P<m>[0-9]{2})", {"2024-05"}, {"2024-5"}},
      {"a{3}b{2,}", {"aaabb", "aaabbbbb"}, {"aabb", "aaab"}},
      {"(a?){3}(b*)*c", {"c", "aabbbc"}, {"aaaac", ""}},
      {"\\.\\/\\-\\^\\$\\(\\)\\[\\]\\{\\}\\|\\*\\+\\?\\\\", {"./-^$()[]{}|*+?\\"}, {""}},
      {"\\Aab\\Z", {"ab"}, {"b"}},
      {"[\\]\\b\\-a]", {"]", "\b", "-", "a"}, {"b"}},
  };
  for (const Case& c : cases) {
    const Grammar grammar = compile_regex(c.expression);
    for (const auto& text : c.matched)
      EXPECT_TRUE(grammar.accepts(text)) << c.expression << " should match " << text;
    for (const auto& text : c.refused)
      EXPECT_FALSE(grammar.accepts(text)) << c.expression << " should not match " << text;
  }
}

TEST(ConstrainRegex, RefusesWhatItCannotKeep) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"(a", "not closed"},
      {"a)", "without its ("},
      {"[a", "not closed"},
      {"[]", "empty class"},
      {"a**", "a count behind a count"},
      {"*a", "a count of nothing"},
      {"a{2,1}", "wrong order"},
      {"a{,2}", "a count that is no number"},
      {"a{1000000}", "a count over"},
      {"(?=a)", "look-around"},
      {"(?!a)b", "look-around"},
      {"(?<=a)b", "look-around"},
      {"(?<!a)b", "look-around"},
      {"(a)\\1", "back references"},
      {"(?P<n>a)(?P=n)", "back references"},
      {"a\\b", "word boundaries"},
      {"(?i)a", "not supported"},
      {"a++", "possessive"},
      {"a^b", "in its middle"},
      {"(a$b)", "in its middle"},
      {"\\q", "not known"},
      {"\\", "backslash"},
      {"[b-a]", "wrong order"},
      {"[[:alpha:]]", "POSIX"},
      {"\\p{Greek}", "not supported"},
      {"\\ud800", "surrogate"},
      {"\\u{110000}", "beyond"},
      {"\xff", "UTF-8"},
      {"[a-z]{100000}{3}", "a count behind a count"},
      {"(?:[a-z]{1000}){1000}", "more than 200000 instructions"},
      {std::string(1000, '(') + std::string(1000, ')'), "deeper than 200"},
      {std::string(50000, 'a'), "at most"},
  };
  for (const auto& [expression, reason] : cases)
    EXPECT_THAT(message_of([&] { compile_regex(expression); }), HasSubstr(reason))
        << expression.substr(0, 40);
}

}  // namespace
}  // namespace mixtral::constrain
