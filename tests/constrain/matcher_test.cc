#include "constrain/matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "constrain/automaton.h"
#include "tests/constrain/sampler.h"
#include "tests/constrain/validator.h"
#include "tests/support/files.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace mixtral::constrain {
namespace {

using testing::HasSubstr;

const std::vector<std::string> kSchemas = {
    R"({})",
    R"({"type":"object"})",
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer",
        "minimum":0,"maximum":150},"tags":{"type":"array","items":{"enum":["a","nö","\"q\""]},"maxItems":3}},
        "required":["name","tags"],"additionalProperties":false})",
    R"({"type":"object","properties":{"a":{"type":"number","exclusiveMinimum":-1.5,"maximum":2.25}},
        "required":["a","b"],"additionalProperties":{"type":["null","boolean"]}})",
    R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"v":{"type":"integer",
        "multipleOf":3},"kids":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}},
        "required":["v","kids"]}}})",
    R"({"type":"string","minLength":2,"maxLength":5})",
    R"({"type":"string","pattern":"^[a-cé]{2,4}(-[0-9]+)?$","maxLength":9})",
    R"({"type":"string","pattern":"a.c"})",
    R"({"type":"array","prefixItems":[{"type":"boolean"},{"type":"null"}],
        "items":{"type":"integer","minimum":-20,"maximum":-7},"minItems":1,"maxItems":4})",
    R"({"oneOf":[{"type":"object","properties":{"k":{"const":"x"}},"required":["k"]},
        {"type":"object","properties":{"k":{"const":"y"},"n":{"type":"null"}},"required":["k","n"]}]})",
    R"({"type":"object","patternProperties":{"^a":{"type":"integer"},"b$":{"minimum":10,"type":"integer"}},
        "additionalProperties":false,"maxProperties":2})",
    R"({"allOf":[{"type":"integer","minimum":5},{"anyOf":[{"maximum":7},{"minimum":100,"maximum":120}]}]})",
};

TEST(ConstrainMatcher, WhatIsDrawnIsValid) {
  for (const auto& text : kSchemas) {
    const Json schema = Json::parse(text, "schema");
    const Matcher start(compile_json_schema(schema), toy_vocabulary());
    RandomStream random(7);
    int ended = 0;
    for (int i = 0; i < 40; ++i) {
      const auto drawn = sample_text(start, *toy_vocabulary(), random, 400);
      if (!drawn) continue;
      ++ended;
      std::optional<Json> value;
      const std::string refused = message_of([&] { value = Json::parse(*drawn, "drawn"); });
      if (refused.find("appears twice") != std::string::npos) continue;  // a name not listed
      ASSERT_TRUE(value.has_value()) << text << " drew " << *drawn << ": " << refused;
      EXPECT_TRUE(Validator(schema).valid(*value, schema)) << text << " drew " << *drawn;
    }
    EXPECT_GE(ended, 10) << text;
  }
}

TEST(ConstrainMatcher, MasksSayWhatAcceptSays) {
  std::vector<Grammar> grammars;
  for (const auto& text : kSchemas) grammars.push_back(compile_json_schema(text, "schema"));
  for (const char* expression :
       {"[a-z]+", ".{0,3}x?", "(\\w| ){1,70}", "[^\"\\\\]{0,200}", "(the|hello)? ?.*", "[é€😀]*"})
    grammars.push_back(compile_regex(expression));
  grammars.push_back(compile_gbnf("root ::= \"{\" (root | [^{}])* \"}\""));
  const Vocabulary& vocabulary = *toy_vocabulary();
  for (const Grammar& grammar : grammars) {
    RandomStream random(3);
    for (int run = 0; run < 3; ++run) {
      Matcher matcher(grammar, toy_vocabulary());
      for (int step = 0; step < 25; ++step) {
        std::vector<uint32_t> mask((static_cast<size_t>(vocabulary.size()) + 31) / 32,
                                   ~uint32_t{0});
        ASSERT_TRUE(matcher.allow(mask));
        std::vector<int32_t> fitting;
        for (int32_t id = 0; id < vocabulary.size(); ++id) {
          Matcher copy = matcher;
          const bool fits = copy.accept(id);
          ASSERT_EQ(fits, (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0)
              << "token " << id << " \"" << vocabulary.bytes(id) << "\"";
          if (fits && !vocabulary.is_stop(id)) fitting.push_back(id);
        }
        if (fitting.empty()) {
          EXPECT_TRUE(matcher.must_end());
          break;
        }
        ASSERT_TRUE(matcher.accept(fitting[random.below(fitting.size())]));
      }
    }
  }
}

TEST(ConstrainMatcher, GrammarsAndExpressionsAreObeyed) {
  const Grammar grammar = compile_gbnf("root ::= (\"yes\" | \"nö\") \" \" [0-9]{2} [à-ü]\n");
  const Grammar expression = compile_regex("(ab|c){2,3}[.!?]");
  RandomStream random(1);
  for (int i = 0; i < 50; ++i) {
    const auto text = sample_text({grammar, toy_vocabulary()}, *toy_vocabulary(), random, 60);
    ASSERT_TRUE(text.has_value());
    EXPECT_TRUE(is_valid_utf8(*text) && grammar.accepts(*text)) << *text;
    const auto other = sample_text({expression, toy_vocabulary()}, *toy_vocabulary(), random, 60);
    ASSERT_TRUE(other.has_value());
    EXPECT_TRUE(expression.accepts(*other)) << *other;
  }
}

TEST(ConstrainMatcher, TheEndIsWhereTheTextMayEnd) {
  const auto vocabulary = toy_vocabulary();
  const int32_t stop = vocabulary->stops()[0];
  Matcher matcher(compile_regex("ab?"), vocabulary);
  EXPECT_FALSE(matcher.can_end());
  EXPECT_FALSE(matcher.accept(stop));
  EXPECT_FALSE(matcher.accept(-1));
  EXPECT_FALSE(matcher.accept(100000));
  EXPECT_FALSE(matcher.accept('b')) << "and nothing changes";
  EXPECT_TRUE(matcher.accept('a'));
  EXPECT_TRUE(matcher.can_end());
  EXPECT_FALSE(matcher.must_end());
  EXPECT_TRUE(matcher.accept('b'));
  EXPECT_TRUE(matcher.must_end());
  std::vector<uint32_t> mask(20, ~uint32_t{0});
  EXPECT_TRUE(matcher.allow(mask));
  int bits = 0;
  for (const uint32_t word : mask) bits += std::popcount(word);
  EXPECT_EQ(bits, 1) << "the stop token alone, and none outside the vocabulary";
  EXPECT_TRUE(matcher.accept(stop));
  EXPECT_FALSE(matcher.accept(stop));
  EXPECT_FALSE(matcher.accept('b'));
}

TEST(ConstrainMatcher, AMaskKeepsWhatWasClearedBefore) {
  Matcher matcher(compile_regex("[ab]"), toy_vocabulary());
  std::vector<uint32_t> mask(12, ~uint32_t{0});
  mask['a' / 32] &= ~(uint32_t{1} << ('a' % 32));
  EXPECT_TRUE(matcher.allow(mask));
  EXPECT_EQ(mask['b' / 32], uint32_t{1} << ('b' % 32));
  mask.assign(12, 0);
  EXPECT_FALSE(matcher.allow(mask));
}

TEST(ConstrainMatcher, ControlTokensAreNeverAllowed) {
  const auto tokenizer = load_tokenizer("bytes");
  const std::vector<int64_t> stops{tokenizer->eos_id()};
  const auto vocabulary = std::make_shared<const Vocabulary>(*tokenizer, stops);
  Matcher matcher(compile_regex(".*"), vocabulary);
  std::vector<uint32_t> mask(9, ~uint32_t{0});
  EXPECT_TRUE(matcher.allow(mask));
  EXPECT_EQ(mask[8], uint32_t{1} << (tokenizer->eos_id() - 256)) << "EOS, and not BOS";
  EXPECT_FALSE(matcher.accept(tokenizer->bos_id()));
}

TEST(ConstrainMatcher, AFullTableGoesOnInAnother) {
  const Grammar grammar = compile_json_schema("{}", "schema");
  const auto vocabulary = toy_vocabulary();
  auto automaton = std::make_shared<Automaton>(grammar.shared_network(), vocabulary, 150'000);
  const auto roomy = std::make_shared<Automaton>(grammar.shared_network(), vocabulary);
  auto state = automaton->start(), same = roomy->start();
  std::string text;
  for (int i = 0; i < 15; ++i)
    text += "[{\"a\":\"" + std::string(1, static_cast<char>('a' + i % 26)) + "\",\"é\":[";
  int moves = 0;
  for (const char c : text) {
    std::vector<uint32_t> mask(12, ~uint32_t{0}), other(12, ~uint32_t{0});
    if (auto [next, moved] = automaton->successor(state); next) {
      automaton = next;
      state = moved;
      ++moves;
    }
    automaton->allow(state, mask);
    roomy->allow(same, other);
    ASSERT_EQ(mask, other);
    state = automaton->step(state, {&c, 1});
    same = roomy->step(same, {&c, 1});
    ASSERT_NE(state, Automaton::kDead);
  }
  EXPECT_GE(moves, 2);
}

TEST(ConstrainMatcher, CopiesMayBeUsedInManyThreads) {
  const Matcher start(compile_json_schema(kSchemas[2], "schema"), toy_vocabulary());
  std::vector<std::string> texts(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < texts.size(); ++i)
    threads.emplace_back([&, i] {
      RandomStream random(5);
      for (int run = 0; run < 5; ++run)
        texts[i] += sample_text(start, *toy_vocabulary(), random, 200).value_or("(no end)");
    });
  for (auto& thread : threads) thread.join();
  for (const auto& text : texts) EXPECT_EQ(text, texts[0]);
}

TEST(ConstrainMatcher, AGrammarThatTakesTooLongIsAnError) {
  // Each of many counters may stand at any of its counts.
  const Grammar grammar = compile_regex("(?:[a-z]{0,300}[a-y]{0,300}){0,150}");
  Matcher matcher(grammar, toy_vocabulary());
  const auto run = [&] {
    for (int i = 0; i < 20; ++i) {
      std::vector<uint32_t> mask(12, ~uint32_t{0});
      matcher.allow(mask);
      matcher.accept('a');
    }
  };
  EXPECT_THAT(message_of(run), HasSubstr("too ambiguous"));
}

}  // namespace
}  // namespace mixtral::constrain
