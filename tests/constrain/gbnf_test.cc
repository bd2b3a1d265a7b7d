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
  std::string grammar;
  std::vector<std::string> matched, refused;
};

TEST(ConstrainGbnf, MatchesWholeTexts) {
  const std::vector<Case> cases = {
      {"root ::= (\"yes\" | \"nö\") \" \" [0-9]{2} [à-ü]\n",
       {"yes 12é", "nö 00ü"},
       {"yes 1é", "no 12é"}},
      {"# a comment\n\nroot ::= greeting \"!\" # another\ngreeting ::= \"hi\" |\n  \"hello\"\n",
       {"hi!", "hello!"},
       {"hi", "hey!"}},
      {"root ::= a\n  | b\na ::= \"a\"\r\nb ::= \"b\"", {"a", "b"}, {"ab"}},
      {"root ::= (\n  \"a\"\n  (\",\" \"b\")*\n)?", {"", "a", "a,b,b"}, {",b"}},
      {"root ::= \"ab\"+ \"c\"?", {"ab", "ababc"}, {"abb", "c"}},
      {"root ::= [^\"\\\\\\n\\x41]+ .", {"bé", "b\""}, {"A.", "\n."}},
      {"root ::= \"\\x41\\u00e9\\U0001F600\\t\\\"\\\\\"", {"Aé😀\t\"\\"}, {""}},
      {"root ::= [a-zA-Z_-]{2,3} [\\]\\[]{1,} .{0,1}", {"a-]", "_Z_[]x"}, {"a]", "abcd]"}},
      {"root ::= \"(\" root \")\" | \"x\"", {"x", "((x))"}, {"((x)", "()"}},
      {"root ::= item (\",\" item)*\nitem ::= \"a\" tail\ntail ::= \"\" | \"b\" tail",
       {"a,abb", "a"},
       {"a,", "b"}},
      {"root ::= s s\ns ::= \"a\" s \"x\" | \"a\" s \"y\" | \"a\"",
       {"aa",
        "aaxaaay"
        "x"},
       {"aax"
        "x"}},
      {"root ::= \"a\" |", {"a", ""}, {"aa"}},
      {"root ::=\nnext ::= \"a\"", {""}, {"a"}},
      {"root ::= (\"a\"*)* (\"b\"?)+", {"", "aab"}, {"ba"}},
      {"root ::= \"a\"{3}", {"aaa"}, {"aa", "aaaa"}},
      {"root-1 ::= \"x\"\nroot ::= root-1 | other_2\nother_2 ::= \"y\"", {"x", "y"}, {"z"}},
  };
  for (const Case& c : cases) {
    const Grammar grammar = compile_gbnf(c.grammar);
    for (const auto& text : c.matched)
      EXPECT_TRUE(grammar.accepts(text)) << c.grammar << " should match " << text;
    for (const auto& text : c.refused)
      EXPECT_FALSE(grammar.accepts(text)) << c.grammar << " should not match " << text;
  }
}

TEST(ConstrainGbnf, RefusesWhatItCannotKeep) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no rule named root"},
      {"rout := \"a\"", "line 1: expected ::= behind rout"},
      {"rout ::= \"a\"", "no rule named root"},
      {"root ::= missing", "line 1: the rule missing is not defined"},
      {"root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule root is defined twice"},
      {"root ::= root \"a\" | \"b\"", "the rule root begins with itself"},
      {"root ::= a\na ::= \"x\"? b\nb ::= a \"y\" | \"z\"", "begins with itself"},
      {"root ::= \"a", "not closed"},
      {"root ::= [a", "not closed"},
      {"root ::= (\"a\"", "closing parenthesis"},
      {"root ::= \"a\")", "expected the end of the rule"},
      {"root ::= *", "without anything before it"},
      {"root ::= \"a\"{2,1}", "wrong order"},
      {"root ::= \"a\"{x}", "expected a count"},
      {"root ::= \"a\"{1000000}", "a count over"},
      {"root ::= \"\\q\"", "an escape that is not known"},
      {"root ::= \"\\ud800\"", "is no character"},
      {"root ::= [b-a]", "wrong order"},
      {"root ::= <token>", "angle brackets"},
      {"root ::= \"a\" root", "no text fits"},
      {"root ::= a a\na ::= \"x\" a", "no text fits"},
      {"root ::= (([a-z]{1000}){1000}){1000}", "more than 200000 instructions"},
      {"root ::= (((\"\"{1000}){1000}){1000}){1000} \"a\"", "no error"},
      {"root ::= " + std::string(500, '(') + "\"a\"" + std::string(500, ')'), "deeper than 200"},
      {"root ::= \"\xff\"", "UTF-8"},
  };
  for (const auto& [grammar, reason] : cases)
    EXPECT_THAT(message_of([&] { compile_gbnf(grammar); }), HasSubstr(reason))
        << grammar.substr(0, 60);
}

TEST(ConstrainGbnf, RecursionIsBoundedAndCanAlwaysEnd) {
  const Grammar grammar = compile_gbnf("root ::= \"(\" root \")\" | \"x\"");
  EXPECT_TRUE(grammar.accepts(std::string(250, '(') + "x" + std::string(250, ')')));
  EXPECT_FALSE(grammar.accepts(std::string(300, '(') + "x" + std::string(300, ')')));
  // A rule that calls itself last needs no depth.
  EXPECT_TRUE(compile_gbnf("root ::= \"a\" root | \"b\"").accepts(std::string(5000, 'a') + "b"));
}

TEST(ConstrainGbnf, AmbiguousGrammarsStayCheap) {
  const Grammar grammar =
      compile_gbnf("root ::= \"a\" root \"x\" | \"a\" root \"y\" | \"a\" root | \"a\"");
  EXPECT_TRUE(grammar.accepts(std::string(200, 'a') + "xyxyxy"));
  EXPECT_FALSE(grammar.accepts(std::string(4, 'a') + "xyxyxy"));
}

}  // namespace
}  // namespace mixtral::constrain
