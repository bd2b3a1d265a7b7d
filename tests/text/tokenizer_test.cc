#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "io/json.h"
#include "tests/text/text_cases.h"
#include "text/byte_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"
#include "text/stream_decoder.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string random_bytes(RandomStream& random) {
  std::string bytes;
  for (uint64_t n = random.below(60); n > 0; --n) {
    bytes += random.below(3) == 0 ? 'a' : static_cast<char>(random.below(256));
  }
  return bytes;
}

/// Own models and, where present, Mixtral's.
std::vector<std::shared_ptr<Tokenizer>> tokenizers() {
  std::vector<std::shared_ptr<Tokenizer>> all = {
      std::make_shared<SentencePieceTokenizer>(own_model(), "own.model"),
      std::make_shared<ByteTokenizer>(),
      std::make_shared<ByteTokenizer>(ByteTokenizer::Specials::none)};
  if (const auto path = shared_file("data/mistral-tokenizer-v1.model"); !path.empty()) {
    all.push_back(load_tokenizer(path));
  }
  return all;
}

TEST(Tokenizer, AgreesWithTheReferenceEncodingsOfMixtralsTokenizer) {
  const auto rows = shared_file("fixtures/tokenizer-mistral-v1.jsonl");
  const auto model = shared_file("data/mistral-tokenizer-v1.model");
  if (rows.empty() || model.empty()) GTEST_SKIP() << "no shared fixtures";
  const auto tokenizer = load_tokenizer(model);
  std::ifstream file(rows);
  int cases = 0, number = 0;
  for (std::string line; std::getline(file, line);) {
    const Json row = Json::parse(line, "fixture:" + std::to_string(++number));
    if (row.find("text") == nullptr) continue;
    std::vector<int32_t> ids;
    for (const Json& id : row.at("ids").items()) ids.push_back(static_cast<int32_t>(id.as_int()));
    EXPECT_EQ(tokenizer->encode(row.at("text").as_string()), ids) << line;
    EXPECT_EQ(tokenizer->decode(ids), row.at("decoded").as_string()) << line;
    ++cases;
  }
  EXPECT_GT(cases, 150);
}

TEST(Tokenizer, AnyBytesComeBack) {
  RandomStream random(21);
  for (const auto& tokenizer : tokenizers()) {
    for (int i = 0; i < 2000; ++i) {
      const std::string bytes = random_bytes(random);
      ASSERT_EQ(tokenizer->decode(tokenizer->encode(bytes)),
                // U+2581 and the space are one and the same to SentencePiece; random bytes do not
                // form it often enough to matter, and would show here.
                bytes)
          << tokenizer->description() << ", seed 21, case " << i;
    }
    const std::string all_bytes = [] {
      std::string text;
      for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
      return text;
    }();
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(all_bytes)), all_bytes);
  }
}

TEST(Tokenizer, TextNeverBecomesAControlToken) {
  RandomStream random(22);
  for (const auto& tokenizer : tokenizers()) {
    for (int i = 0; i < 500; ++i) {
      const std::string text = random_text(random, {"<s>", "</s>", "<unk>", "<pad>"});
      for (const int32_t id : tokenizer->encode(text)) {
        ASSERT_FALSE(tokenizer->is_control(id) || id == tokenizer->unk_id()) << text;
      }
    }
  }
}

TEST(Tokenizer, HostileTextTakesNearLinearTimeAndComesBack) {
  constexpr size_t size = size_t{1} << 20;
  std::vector<std::string> texts = {std::string(size, 'a'), std::string(size, ' '),
                                    std::string(size, '\0'), std::string(size, '\xFF'),
                                    std::string(size, '\xE2')};
  std::string marks = "e", mixed, words;
  while (marks.size() < size) marks += "\xCC\x81";
  while (mixed.size() < size) mixed += "ab";
  while (words.size() < size) words += "thethe";
  texts.insert(texts.end(), {marks, mixed, words});
  for (const auto& tokenizer : tokenizers()) {
    for (const std::string& text : texts) {
      const auto start = std::chrono::steady_clock::now();
      const auto ids = tokenizer->encode(text);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      EXPECT_EQ(tokenizer->decode(ids), text);
      // About 0.2 s; the quadratic way takes many minutes. The bound allows for sanitizers.
      EXPECT_LT(seconds.count(), 10) << tokenizer->description() << " on " << int{text[0]};
    }
  }
}

TEST(Tokenizer, ThreadsMayShareOne) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  const std::string text = plain_text(9, 200);
  const auto expected = tokenizer.encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = tokenizer.encode(text);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, PiecesAddUpToTheDecodedText) {
  RandomStream random(23);
  for (const auto& tokenizer : tokenizers()) {
    for (int i = 0; i < 500; ++i) {
      const auto ids = tokenizer->encode(random_text(random, {}));
      std::string text;
      for (const int32_t id : ids) text += tokenizer->piece(id);
      const std::string decoded = tokenizer->decode(ids);
      ASSERT_EQ(text, text == decoded ? decoded : " " + decoded);
    }
  }
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreErrors) {
  for (const auto& tokenizer : tokenizers()) {
    for (const int32_t id : {-1, tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
      EXPECT_THAT(message_of([&] { tokenizer->decode(std::vector{id}); }),
                  HasSubstr("outside the tokenizer's vocabulary"));
      EXPECT_THROW(tokenizer->piece(id), Error);
      EXPECT_THROW(tokenizer->label(id), Error);
    }
  }
}

TEST(Tokenizer, SpecialTokensDecodeToNothing) {
  for (const auto& tokenizer : tokenizers()) {
    if (tokenizer->bos_id() < 0) continue;
    auto ids = tokenizer->encode("the fox");
    ids.insert(ids.begin(), tokenizer->bos_id());
    ids.push_back(tokenizer->eos_id());
    EXPECT_EQ(tokenizer->decode(ids), "the fox");
    EXPECT_EQ(tokenizer->piece(tokenizer->eos_id()), "");
    EXPECT_TRUE(tokenizer->is_control(tokenizer->eos_id()));
  }
}

TEST(ByteTokenizer, TokensAreTheBytes) {
  const ByteTokenizer with_specials, without(ByteTokenizer::Specials::none);
  EXPECT_THAT(with_specials.encode("A\n\xFF"), ElementsAre(65, 10, 255));
  EXPECT_EQ(with_specials.vocab_size(), 258);
  EXPECT_EQ(with_specials.bos_id(), 256);
  EXPECT_EQ(with_specials.eos_id(), 257);
  EXPECT_EQ(without.vocab_size(), 256);
  EXPECT_EQ(without.eos_id(), -1);
}

TEST(LoadTokenizer, SavesAndLoadsEachKind) {
  for (const auto& tokenizer : tokenizers()) {
    const TemporaryDirectory directory;
    tokenizer->save(directory.path());
    const auto again = load_tokenizer(directory.path());
    EXPECT_EQ(again->description(), tokenizer->description());
    EXPECT_EQ(again->encode("Be brief. </s>\t\xF0\x9F\x99\x82"),
              tokenizer->encode("Be brief. </s>\t\xF0\x9F\x99\x82"));
    EXPECT_EQ(find_tokenizer(directory.path())->kind(), tokenizer->kind());
  }
}

TEST(LoadTokenizer, KeepsTheModelFileAndWhatStandsBesideIt) {
  const TemporaryDirectory source, target, fresh;
  write_file(source.path() / "tokenizer.model", own_model());
  write_file(source.path() / "tokenizer_config.json", R"({"chat_template": "mine"})");
  load_tokenizer(source.path())->save(target.path());
  EXPECT_EQ(read_file(target.path() / "tokenizer.model"), own_model());
  EXPECT_EQ(read_file(target.path() / "tokenizer_config.json"), R"({"chat_template": "mine"})");

  SentencePieceTokenizer(own_model(), "own.model").save(fresh.path());
  const Json config = Json::load(fresh.path() / "tokenizer_config.json");
  EXPECT_EQ(config.at("tokenizer_class").as_string(), "LlamaTokenizer");
  EXPECT_EQ(config.at("bos_token").as_string(), "<s>");
  EXPECT_TRUE(config.at("add_bos_token").as_bool());
}

TEST(LoadTokenizer, SaysWhatItLookedFor) {
  const TemporaryDirectory directory;
  EXPECT_THAT(message_of([&] { load_tokenizer(directory.path()); }),
              HasSubstr("looked for tokenizer.model, tokenizer.json and byte_tokenizer.json"));
  EXPECT_EQ(find_tokenizer(directory.path()), nullptr);
  EXPECT_THAT(message_of([&] { load_tokenizer(directory.path() / "none.model"); }),
              HasSubstr("none.model: no such tokenizer"));
  write_file(directory.path() / "tokenizer.json", "{}");
  EXPECT_THAT(message_of([&] { load_tokenizer(directory.path()); }), HasSubstr("model"));
  std::filesystem::remove(directory.path() / "tokenizer.json");
  write_file(directory.path() / "byte_tokenizer.json", R"({"kind": "words"})");
  EXPECT_THAT(message_of([&] { load_tokenizer(directory.path()); }),
              HasSubstr("byte_tokenizer.json: expected a byte tokenizer"));
  write_file(directory.path() / "byte_tokenizer.json",
             R"({"kind": "bytes", "bos_id": 1, "eos_id": 2})");
  EXPECT_THAT(message_of([&] { load_tokenizer(directory.path()); }),
              HasSubstr("expected 256 and 257"));
  EXPECT_EQ(load_tokenizer("bytes")->vocab_size(), 258);
  EXPECT_EQ(load_tokenizer("bytes-256")->vocab_size(), 256);
}

TEST(StreamDecoder, GivesTheWholeTextInWholeCharacters) {
  RandomStream random(24);
  for (const auto& tokenizer : tokenizers()) {
    for (int i = 0; i < 1000; ++i) {
      std::vector<int32_t> ids;
      if (i % 3 == 0) {
        ids = tokenizer->encode(random_text(random, {}));
      } else {
        for (uint64_t n = random.below(30); n > 0; --n) {
          ids.push_back(static_cast<int32_t>(
              random.below(i % 3 == 1 ? 259 : static_cast<uint64_t>(tokenizer->vocab_size())) %
              static_cast<uint64_t>(tokenizer->vocab_size())));
        }
      }
      StreamDecoder decoder(*tokenizer);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = decoder.push(id);
        ASSERT_TRUE(is_valid_utf8(part));
        text += part;
      }
      text += decoder.flush();
      ASSERT_EQ(text, to_valid_utf8(tokenizer->decode(ids))) << "seed 24, case " << i;
    }
  }
}

TEST(StreamDecoder, HoldsSplitCharactersAndMarksUnfinishedOnes) {
  const ByteTokenizer tokenizer;
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.push(0x82), "");
  EXPECT_EQ(decoder.push(0xAC), "\xE2\x82\xAC");
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push('x'), "\xEF\xBF\xBDx");
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, DropsTheDummySpaceOnlyAtTheStart) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  const auto ids = tokenizer.encode("the fox");
  for (const auto position : {StreamDecoder::Position::start, StreamDecoder::Position::middle}) {
    StreamDecoder decoder(tokenizer, position);
    std::string text = position == StreamDecoder::Position::start ? decoder.push(tokenizer.bos_id())
                                                                  : std::string();
    for (const int32_t id : ids) text += decoder.push(id);
    EXPECT_EQ(text, position == StreamDecoder::Position::start ? "the fox" : " the fox");
  }
}

TEST(Utf8, LengthsAndTails) {
  EXPECT_EQ(utf8_length("a"), 1u);
  EXPECT_EQ(utf8_length("\xC3\xA9"), 2u);
  EXPECT_EQ(utf8_length("\xF4\x8F\xBF\xBF"), 4u);
  for (const char* bad : {"", "\x80", "\xC0\x80", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xC3x"}) {
    EXPECT_EQ(utf8_length(bad), 0u) << testing::PrintToString(bad);
  }
  EXPECT_EQ(incomplete_utf8_tail("a\xE2\x82"), 2u);
  EXPECT_EQ(incomplete_utf8_tail("a\xF0\x9F\x99"), 3u);
  EXPECT_EQ(incomplete_utf8_tail("\xE2\x82\xAC"), 0u);
  EXPECT_EQ(incomplete_utf8_tail("\xED\xA0"), 0u);  // a surrogate: nothing can complete it
  EXPECT_EQ(to_valid_utf8("a\xFF\xC3\xA9"), "a\xEF\xBF\xBD\xC3\xA9");
}

}  // namespace
}  // namespace mixtral
