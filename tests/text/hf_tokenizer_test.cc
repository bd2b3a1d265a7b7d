#include "text/hf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "base/error.h"
#include "tests/text/hf_cases.h"
#include "text/pattern.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

std::unique_ptr<HfTokenizer> open(const ordered_json& json, const TokenizerConfig& config = {}) {
  return std::make_unique<HfTokenizer>(json.dump(), "t.json", config);
}

std::vector<std::string> labels(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::vector<std::string> result;
  for (const int32_t id : ids) result.push_back(tokenizer.label(id));
  return result;
}

std::string message_of(const ordered_json& json) {
  try {
    open(json);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(HfTokenizer, MergesInTheOrderOfTheList) {
  const auto tokenizer =
      open(hf_tokenizer({"a", "b", "c", "ab", "bc", "abc"}, {"b c", "a b", "a bc"}));
  EXPECT_THAT(labels(*tokenizer, tokenizer->encode("abcab")), ElementsAre("abc", "ab"));
}

TEST(HfTokenizer, TakesMergesAsPairsToo) {
  auto json = hf_tokenizer({"a", "b", "ab"}, {});
  json["model"]["merges"] = ordered_json::array({ordered_json::array({"a", "b"})});
  EXPECT_THAT(labels(*open(json), open(json)->encode("aab")), ElementsAre("a", "ab"));
}

TEST(HfTokenizer, IgnoreMergesTakesAWholeWordFirst) {
  auto json = hf_tokenizer({"a", "b", "c", "ab", "abc"}, {"a b"});
  EXPECT_THAT(labels(*open(json), open(json)->encode("abc")), ElementsAre("ab", "c"));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(labels(*open(json), open(json)->encode("abc")), ElementsAre("abc"));
}

TEST(HfTokenizer, UnknownCharactersAreFusedWhereTheModelSaysSo) {
  auto json = hf_tokenizer({"<unk>", "a"}, {});
  EXPECT_THAT(open(json)->encode("xya"), ElementsAre(1)) << "no unknown piece: left out";
  json["model"]["unk_token"] = "<unk>";
  EXPECT_THAT(open(json)->encode("xya"), ElementsAre(0, 0, 1));
  json["model"]["fuse_unk"] = true;
  EXPECT_THAT(open(json)->encode("xya"), ElementsAre(0, 1));
}

TEST(HfTokenizer, AnyBytesComeBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  for (const auto& json : {byte_level_tokenizer(), byte_fallback_tokenizer()}) {
    const auto tokenizer = open(json);
    for (const std::string& text : {bytes, std::string("h\xC3\xA9llo  w\xE4\xB8\x96"), bytes + "a"})
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(HfTokenizer, OnlyAPromptHoldsControlTokens) {
  const auto tokenizer = open(byte_level_tokenizer());
  const std::string text = "<|bos|>he<|turn|>";
  EXPECT_THAT(tokenizer->encode_prompt(text), ElementsAre(259, 256, 260));
  EXPECT_THAT(tokenizer->encode(text), testing::Each(testing::Lt(259)));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode_prompt(text)), "he<|turn|>");
  EXPECT_THAT(tokenizer->control_texts(), ElementsAre("<|bos|>", "<|turn|>"));
}

TEST(HfTokenizer, TypedTextNeverIsAControlTokenThatIsAWholeWord) {
  auto json = hf_tokenizer({"[", "I", "]", "[I]"}, {});
  json["model"]["ignore_merges"] = true;
  json["added_tokens"] = ordered_json::array({hf_added(3, "[I]")});
  EXPECT_THAT(open(json)->encode("[I]"), ElementsAre(0, 1, 2));
  EXPECT_THAT(open(json)->encode_prompt("[I]"), ElementsAre(3));
}

TEST(HfTokenizer, AddedTokensTakeSpacesAndWordsAsTheirFlagsSay) {
  auto json = hf_tokenizer({"a", " ", "W"}, {});
  const auto with = [&](const char* flag, const std::string& text) {
    json["added_tokens"] = ordered_json::array({hf_added(3, "W2", false)});
    json["added_tokens"][0]["id"] = 3;
    if (*flag != '\0') json["added_tokens"][0][flag] = true;
    return open(json)->encode_prompt(text);
  };
  EXPECT_THAT(with("", "a W2 a"), ElementsAre(0, 1, 3, 1, 0));
  EXPECT_THAT(with("lstrip", "a W2 a"), ElementsAre(0, 3, 1, 0));
  EXPECT_THAT(with("rstrip", "a W2 a"), ElementsAre(0, 1, 3, 0));
  EXPECT_THAT(with("single_word", "a W2 a"), ElementsAre(0, 1, 3, 1, 0));
  EXPECT_THAT(with("single_word", "aW2"), ElementsAre(0, 2)) << "2 is no piece: left out";
}

TEST(HfTokenizer, MetaspacePutsItsSymbolWhereItsSchemeSays) {
  const auto with = [&](const char* scheme, bool split) {
    auto json = hf_tokenizer({"\u2581", "a", "<x>"}, {});
    json["added_tokens"] = ordered_json::array({hf_added(2, "<x>")});
    json["pre_tokenizer"] = {{"type", "Metaspace"},
                             {"replacement", "\u2581"},
                             {"prepend_scheme", scheme},
                             {"split", split}};
    return open(json)->encode_prompt("a<x>a a");
  };
  for (const bool split : {true, false}) {
    EXPECT_THAT(with("always", split), ElementsAre(0, 1, 2, 0, 1, 0, 1));
    EXPECT_THAT(with("first", split), ElementsAre(0, 1, 2, 1, 0, 1));
    EXPECT_THAT(with("never", split), ElementsAre(1, 2, 1, 0, 1));
  }
}

TEST(HfTokenizer, SplitsByPatternsWithLookahead) {
  auto json = byte_level_tokenizer();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "\\p{L}+|\\s+(?!\\S)|\\s+"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const auto tokenizer = open(json);
  // Of two spaces the last one is split off, so that it stands with nothing: no " w".
  EXPECT_THAT(labels(*tokenizer, tokenizer->encode("he  wll")),
              ElementsAre("he", "\u0120", "\u0120", "w", "ll"));
}

TEST(HfTokenizer, TheConfigurationNamesBosAndEosAndAddsTokens) {
  TokenizerConfig config;
  config.bos = "<|bos|>";
  config.eos = "<|end|>";
  config.added = {{.id = 261, .content = "<|end|>", .special = true}};
  const auto tokenizer = open(byte_level_tokenizer(), config);
  EXPECT_EQ(tokenizer->bos_id(), 259);
  EXPECT_EQ(tokenizer->eos_id(), 261);
  EXPECT_EQ(tokenizer->vocab_size(), 262);
  EXPECT_THAT(tokenizer->encode_prompt("<|end|>"), ElementsAre(261));
}

TEST(HfTokenizer, WithSpecialAddsWhatThePostProcessorDoes) {
  const auto tokenizer = open(byte_fallback_tokenizer());
  EXPECT_THAT(tokenizer->with_special({5}), ElementsAre(1, 5));
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
}

TEST(HfTokenizer, WhatIsNotSupportedIsNamed) {
  struct Case {
    const char* pointer;
    ordered_json value;
    const char* said;
  };
  const Case cases[] = {
      {"/model/type", "Unigram", "Unigram"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/unk_token", "<none>", "<none>"},
      {"/model/vocab/a", -1, "-1"},
      {"/model/vocab/a", 1 << 30, "1073741824"},
      {"/model/vocab/a", 1, "given twice"},
      {"/model/merges", {"a x"}, "\"x\""},
      {"/model/merges", {"b a"}, "\"ba\""},
      {"/model/merges", {"a b a"}, "two pieces"},
      {"/normalizer", {{"type", "Precompiled"}}, "Precompiled"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "UnicodeScripts"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}},
       "(a"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "(a)\\1"}}}, {"behavior", "Isolated"}},
       "\\1"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "[a&&b]"}}}, {"behavior", "Isolated"}},
       "&&"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Dropped"}},
       "Dropped"},
      {"/decoder", {{"type", "CTC"}}, "CTC"},
      {"/post_processor", {{"type", "Other"}}, "Other"},
      {"/added_tokens", ordered_json::array({hf_added(0, "b")}), "\"b\""},
      {"/added_tokens", ordered_json::array({hf_added(1, "new")}), "\"new\""},
      {"/added_tokens", ordered_json::array({hf_added(1 << 30, "new")}), "1073741824"},
  };
  for (const Case& c : cases) {
    auto json = hf_tokenizer({"a", "b", "ab"}, {"a b"});
    json[ordered_json::json_pointer(c.pointer)] = c.value;
    EXPECT_THAT(message_of(json), HasSubstr(c.said)) << c.pointer;
  }
  EXPECT_THAT(message_of(ordered_json::object()), HasSubstr("model"));
}

TEST(HfTokenizer, HostilePatternsEndInAnError) {
  auto json = byte_level_tokenizer();
  json["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a|a)*[bc]"}}}, {"behavior", "Isolated"}};
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(open(json)->encode(std::string(5000, 'a')), Error);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(HfTokenizer, LongTextsTakeNearLinearTime) {
  const auto begin = std::chrono::steady_clock::now();
  for (const auto& json : {byte_level_tokenizer(), byte_fallback_tokenizer()}) {
    const auto tokenizer = open(json);
    for (const char c : {'a', ' ', '\n', '1', '.', '\xFF'})
      EXPECT_FALSE(tokenizer->encode(std::string(1 << 20, c)).empty());
  }
  // Each word is a match; in UTF-8 and in Latin-1.
  auto json = byte_level_tokenizer();
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  for (const char* phrase : {"some caf\u00E9 ", "some caf\xE9 "}) {
    std::string words;
    while (words.size() < (1 << 20)) words += phrase;
    EXPECT_FALSE(open(json)->encode(words).empty());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

TEST(Pattern, OnigurumasSyntaxMeansTheSame) {
  const auto matches = [](const char* expression, std::string_view text) {
    const Pattern pattern(expression, "test");
    Pattern::Matches found(pattern, text);
    std::vector<std::string> all;
    for (size_t begin = 0, end = 0; found.next(begin, end);)
      all.emplace_back(text.substr(begin, end - begin));
    return all;
  };
  EXPECT_THAT(matches("\\s+", "a\u3000 b\u180E"), ElementsAre("\u3000 "));
  EXPECT_THAT(matches("\\w+", "\u00E9a-\u24D0_1"), ElementsAre("\u00E9a", "\u24D0_1"));
  EXPECT_THAT(matches("\\h+", "xaF0g"), ElementsAre("aF0"));
  EXPECT_THAT(matches("\\p{N}{1,3}+", "1234"), ElementsAre("1234")) << "repeats, in Ruby's syntax";
  EXPECT_THAT(matches("\\u0061{2}", "aaa"), ElementsAre("aa"));
  EXPECT_THAT(matches("(?i:'s|'t)", "it'S"), ElementsAre("'S"));
  EXPECT_THAT(matches("^a$", "a\na"), ElementsAre("a", "a"));
  EXPECT_THAT(matches("a{", "a{"), ElementsAre("a{"));
  EXPECT_THAT(matches("b*", "ab"), ElementsAre("", "b"));
  // Bytes that are not UTF-8 are in no match, and nothing matches across them.
  EXPECT_THAT(matches("\\w+",
                      "ab\xFF"
                      "cd\xE9 e"),
              ElementsAre("ab", "cd", "e"));
  EXPECT_THAT(matches("ab|\\s+(?!\\S)|\\s",
                      "a\xFF"
                      "b  \xFF"
                      "ab"),
              ElementsAre("  ", "ab"));
  EXPECT_THAT(matches("\\w+", "\xFF\xFF"), ElementsAre());
}

}  // namespace
}  // namespace mixtral
