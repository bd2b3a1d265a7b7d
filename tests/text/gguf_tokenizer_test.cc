// Tokenizers of GGUF files whose keys are made here.
#include "text/gguf_tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/files.h"
#include "tests/support/gguf_builder.h"
#include "text/sentencepiece_model.h"

namespace mixtral {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kSpace = "\xe2\x96\x81";

/// <unk> <s> </s>, the 256 bytes, then pieces that spell "ab ab".
GgufBuilder llama() {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores(3);
  std::vector<int32_t> types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(fmt::format("<0x{:02X}>", byte));
    types.push_back(6);
  }
  float score = 0;
  for (const std::string& piece : {std::string(kSpace), std::string("a"), std::string("b"),
                                   std::string("ab"), std::string(kSpace) + "ab"}) {
    tokens.push_back(piece);
    types.push_back(1);
  }
  tokens.emplace_back("<|im_start|>");
  types.push_back(4);
  scores.resize(tokens.size());
  for (size_t i = 3 + 256; i < scores.size(); ++i) scores[i] = score -= 1;
  GgufBuilder b;
  b.key("tokenizer.ggml.model", "llama")
      .key("tokenizer.ggml.tokens", tokens)
      .key("tokenizer.ggml.scores", scores)
      .key("tokenizer.ggml.token_type", types)
      .key("tokenizer.ggml.bos_token_id", uint32_t{1})
      .key("tokenizer.ggml.eos_token_id", uint32_t{2})
      .key("tokenizer.ggml.unknown_token_id", uint32_t{0})
      .key("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}");
  return b;
}

/// A byte-level vocabulary with one merge, "h e".
GgufBuilder gpt2(const char* pre) {
  GgufBuilder b;
  b.key("tokenizer.ggml.model", "gpt2")
      .key("tokenizer.ggml.tokens",
           std::vector<std::string>{"h", "e", "he", "\xc4\xa0", "1", "2", "<|end|>"})
      .key("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1, 1, 1, 1, 1, 3})
      .key("tokenizer.ggml.merges", std::vector<std::string>{"h e"})
      .key("tokenizer.ggml.bos_token_id", uint32_t{6})
      .key("tokenizer.ggml.eos_token_id", uint32_t{6});
  if (pre != nullptr) b.key("tokenizer.ggml.pre", pre);
  return b;
}

std::unique_ptr<Tokenizer> read(const GgufBuilder& builder) {
  static std::string bytes;  // the header looks into it
  bytes = builder.bytes();
  return read_gguf_tokenizer(GgufHeader::parse(std::as_bytes(std::span(bytes)), "m.gguf"));
}

TEST(GgufTokenizer, OfTheModelLlamaIsSentencePiece) {
  const auto tokenizer = read(llama());
  EXPECT_EQ(tokenizer->kind(), "sentencepiece-bpe");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_THAT(tokenizer->encode("ab ab"), ElementsAre(263, 263));
  EXPECT_THAT(tokenizer->encode(""), IsEmpty());
  EXPECT_THAT(tokenizer->encode("  "), ElementsAre(259, 259, 259));
  EXPECT_THAT(tokenizer->encode("\xc3\xa9"), ElementsAre(259, 3 + 0xc3, 3 + 0xa9));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{263, 263}), "ab ab");
}

TEST(GgufTokenizer, MakesNoControlTokenOfWhatAUserTypes) {
  const auto tokenizer = read(llama());
  EXPECT_THAT(tokenizer->encode_prompt("<|im_start|>"), ElementsAre(264));
  EXPECT_THAT(tokenizer->encode_prompt("<s>"), ElementsAre(1));
  for (const char* typed : {"<|im_start|>", "<s>", "</s>"})
    for (const int32_t id : tokenizer->encode(typed)) EXPECT_TRUE(id > 2 && id != 264) << typed;
}

TEST(GgufTokenizer, OfTheModelGpt2IsByteLevelWithAPreTokenizer) {
  const auto tokenizer = read(gpt2("llama-bpe"));
  EXPECT_EQ(tokenizer->kind(), "json-bpe");
  EXPECT_THAT(tokenizer->encode("he he12"), ElementsAre(2, 3, 2, 4, 5));
  EXPECT_THAT(tokenizer->encode_prompt("he<|end|>"), ElementsAre(2, 6));
  EXPECT_THAT(tokenizer->with_special({2}), ElementsAre(6, 2));  // llama-bpe's BOS
  EXPECT_THAT(read(gpt2("gpt-2"))->with_special({2}), ElementsAre(2));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{2, 3, 2}), "he he");
}

TEST(GgufTokenizer, BringsItsTemplateAlong) {
  const std::string bytes = llama().bytes();
  const auto config =
      read_gguf_tokenizer_config(GgufHeader::parse(std::as_bytes(std::span(bytes)), "m.gguf"));
  EXPECT_EQ(config.bos, "<s>");
  EXPECT_EQ(config.eos, "</s>");
  ASSERT_EQ(config.templates.size(), 1u);
  EXPECT_EQ(config.templates[0].name, "default");
  EXPECT_THAT(config.templates[0].text, HasSubstr("messages[0]"));
}

TEST(GgufTokenizer, IsAbsentWhereTheFileHasNone) {
  EXPECT_EQ(read(GgufBuilder()), nullptr);
  GgufBuilder none;
  none.key("tokenizer.ggml.model", "none");
  EXPECT_EQ(read(none), nullptr);
}

TEST(GgufTokenizer, IsRefusedByTheKeyThatIsWrong) {
  const auto expect = [](const GgufBuilder& builder, const char* key, const char* what) {
    const std::string message = message_of([&] { read(builder); });
    EXPECT_THAT(message, HasSubstr(key));
    EXPECT_THAT(message, HasSubstr(what));
  };
  GgufBuilder model;
  model.key("tokenizer.ggml.model", "bert");
  expect(model, "tokenizer.ggml.model", "bert");
  expect(gpt2("unheard-of"), "tokenizer.ggml.pre", "unheard-of");
  expect(gpt2(nullptr), "tokenizer.ggml.pre", "missing");
  GgufBuilder scores;
  scores.key("tokenizer.ggml.model", "llama")
      .key("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "a"})
      .key("tokenizer.ggml.scores", std::vector<float>{0});
  expect(scores, "tokenizer.ggml.scores", "2 tokens");
  GgufBuilder types;
  types.key("tokenizer.ggml.model", "llama")
      .key("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "a"})
      .key("tokenizer.ggml.scores", std::vector<float>{0, 0})
      .key("tokenizer.ggml.token_type", std::vector<int32_t>{2, 9});
  expect(types, "tokenizer.ggml.token_type", "type 9");
  GgufBuilder bos;
  bos.key("tokenizer.ggml.model", "llama")
      .key("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "a"})
      .key("tokenizer.ggml.scores", std::vector<float>{0, 0})
      .key("tokenizer.ggml.token_type", std::vector<int32_t>{2, 1})
      .key("tokenizer.ggml.bos_token_id", uint32_t{7});
  expect(bos, "tokenizer.ggml.bos_token_id", "7");
}

}  // namespace
}  // namespace mixtral
