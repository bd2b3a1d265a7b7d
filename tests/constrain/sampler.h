#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "constrain/matcher.h"
#include "text/utf8.h"

namespace mixtral::constrain {

/// All single bytes, and some longer tokens as real vocabularies have them: words, JSON's
/// punctuation with its neighbours, halves of characters; the last token is the stop token.
inline std::vector<std::string> toy_tokens() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* token :
       {"\":",         "\",",      "{\"",      "\"}",          "},",   "[]",   "{}",
        ": ",          ", ",       "\": \"",   "\", \"",       "  ",   "\n  ", "tr",
        "true",        "false",    "null",     "12",           "-1",   "0.5",  "e1",
        "abc",         "name",     "x\"",      "\\n",          "\\u",  "\\\"", "\xc3\xa9",
        "\xc3\xa9t",   "\xe2\x82", "\x82\xac", "\xf0\x9f\x98", "\x80", "yes",  "no",
        "hello world", "the",      " a",       "a]",           "}}",   "\"]",  "1}",
        "2024",        "-0",       "00"})
    tokens.emplace_back(token);
  tokens.emplace_back();
  return tokens;
}

inline std::shared_ptr<const Vocabulary> toy_vocabulary() {
  static const auto vocabulary = [] {
    auto tokens = toy_tokens();
    const std::vector<int64_t> stops{static_cast<int64_t>(tokens.size()) - 1};
    return std::make_shared<const Vocabulary>(std::move(tokens), stops);
  }();
  return vocabulary;
}

/// Draws allowed tokens until the stop token; nothing where the text has not ended after `most`.
/// Stops are preferred after `most` / 2, so that most texts end.
inline std::optional<std::string> sample_text(Matcher matcher, const Vocabulary& vocabulary,
                                              RandomStream& random, int most) {
  std::string text;
  for (int step = 0; step < most; ++step) {
    std::vector<uint32_t> mask((static_cast<size_t>(vocabulary.size()) + 31) / 32, ~uint32_t{0});
    CHECK(matcher.allow(mask), "no token is allowed behind " + text);
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < vocabulary.size(); ++id)
      if ((mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0) allowed.push_back(id);
    CHECK(!allowed.empty(), "the mask says otherwise");
    int32_t token = allowed[random.below(allowed.size())];
    if (step > most / 2)
      for (const int32_t id : allowed) {
        const std::string& bytes = vocabulary.bytes(id);
        const bool closes = bytes == "\"" || bytes == "}" || bytes == "]" || bytes == "null";
        if (vocabulary.is_stop(id) || (closes && random.below(2) == 0)) token = id;
      }
    CHECK(matcher.accept(token), "an allowed token is not accepted");
    if (vocabulary.is_stop(token)) return text;
    text += vocabulary.bytes(token);
  }
  return {};
}

/// Draws a text by the grammar's masks. What is drawn must be a whole text of it, in UTF-8. Nothing
/// where the text has not ended after 60 tokens.
inline std::optional<std::string> draw_checked(const Grammar& grammar) {
  RandomStream random(1);
  const auto drawn = sample_text({grammar, toy_vocabulary()}, *toy_vocabulary(), random, 60);
  if (drawn) CHECK(grammar.accepts(*drawn) && is_valid_utf8(*drawn), *drawn);
  return drawn;
}

/// What a fuzzer does with an expression in a notation: it is refused with a sentence, or what is
/// drawn by its masks is checked.
inline void try_expression(Grammar (*compile)(std::string_view), std::string_view text) {
  try {
    draw_checked(compile(text));
  } catch (const Error& error) {
    CHECK(!std::string_view(error.what()).empty());
  }
}

}  // namespace mixtral::constrain
