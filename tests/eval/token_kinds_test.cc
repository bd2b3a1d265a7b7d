#include "eval/token_kinds.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/random.h"
#include "tests/support/source_directory.h"

namespace mixtral {
namespace {

/// One letter for each token's kind.
std::string letters(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string text;
  for (const TokenKind kind : classify_tokens(tokenizer, ids))
    text += std::string_view("WcN0,_/bx")[static_cast<size_t>(kind)];
  return text;
}

TEST(TokenKinds, FollowTheTextAroundABytesToken) {
  const auto bytes = load_tokenizer("bytes-256");
  struct Case {
    std::string text, kinds;
  };
  const Case cases[] = {
      {"We saw Anna. Then", "Wc_Wcc_NNNN,_Wccc"},         // a capital begins a sentence: no name
      {"and I'm at B1", "Wcc_Wcc_Wc_NN"},                 // "I'm" is no name, a digit in a word is
      {"ROMEO:\nWhat, Juliet?", "Wcccc,/Wccc,_NNNNNN,"},  // a line begins a sentence, a comma not
      {"12 men", "00_Wcc"},
      {"a  \n\tb", "W__/_W"},
      {"don't 'go'", "Wcccc_,Wc,"},
      {"\"Oh!\" Bob", ",Wc,,_Wcc"},  // after the mark that ends a sentence
  };
  for (const Case& c : cases) EXPECT_EQ(letters(*bytes, bytes->encode(c.text)), c.kinds) << c.text;
}

TEST(TokenKinds, CallPiecesOfCharactersBytes) {
  const auto bytes = load_tokenizer("bytes-256");
  EXPECT_EQ(letters(*bytes, bytes->encode("a é\x01")), "W_bbb");
}

TEST(TokenKinds, KnowControlTokensAndIdsOutsideTheVocabulary) {
  const auto bytes = load_tokenizer("bytes");
  ASSERT_GE(bytes->bos_id(), 0);
  const std::vector<int32_t> ids{bytes->bos_id(), bytes->encode("a")[0], bytes->eos_id(),
                                 bytes->vocab_size(), -1};
  EXPECT_EQ(letters(*bytes, ids), "xWxxx");
}

TEST(TokenKinds, TakeAnyIds) {
  const auto bytes = load_tokenizer("bytes-256");
  const uint64_t seed = 11;
  RandomStream random(seed);
  for (int round = 0; round < 50; ++round) {
    std::vector<int32_t> ids;
    for (uint64_t i = random.below(60); i > 0; --i)
      ids.push_back(static_cast<int32_t>(random.below(256)));
    EXPECT_EQ(classify_tokens(*bytes, ids).size(), ids.size()) << "seed " << seed;
  }
}

TEST(TokenKinds, JudgeSentencePiecesByTheirFirstCharacter) {
  const std::filesystem::path file =
      source_directory() / "../shared/data/mistral-tokenizer-v1.model";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is not there";
  const auto tokenizer = load_tokenizer(file);
  const auto ids = tokenizer->encode("The old man met Elizabeth in 1805.\nYes, — é 𓀀");
  const auto kinds = classify_tokens(*tokenizer, ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string label = tokenizer->label(ids[i]);
    const TokenKind kind = kinds[i];
    if (label == "▁The" || label == "▁man") {
      EXPECT_EQ(kind, TokenKind::word_start) << label;
    } else if (label.find("Eli") != std::string::npos) {
      EXPECT_EQ(kind, TokenKind::name) << label;
    } else if (label == "1" || label == "8") {
      EXPECT_EQ(kind, TokenKind::digit) << label;
    } else if (label == "." || label == "," || label == "▁—") {
      EXPECT_EQ(kind, TokenKind::punctuation) << label;
    } else if (label == "<0x0A>") {
      EXPECT_EQ(kind, TokenKind::newline) << label;
    } else if (label.starts_with("<0xF0")) {
      EXPECT_EQ(kind, TokenKind::byte) << label;
    }
  }
}

}  // namespace
}  // namespace mixtral
