// The SentencePiece library is the reference: the same ids and the same text, for models of every
// kind that it trains, over random texts.
#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <cmath>
#include <unordered_map>

#include "tests/text/text_cases.h"
#include "text/sentencepiece_tokenizer.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

using Arguments = std::unordered_map<std::string, std::string>;

class Corpus : public sentencepiece::SentenceIterator {
 public:
  explicit Corpus(std::vector<std::string> lines) : lines_(std::move(lines)) {}
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t at_ = 0;
};

/// Lines with recurring words of several scripts, so that there is something to merge.
std::vector<std::string> corpus_lines() {
  const std::vector<std::string> words = {"the",
                                          "then",
                                          "there",
                                          "other",
                                          "another",
                                          "mother",
                                          "rain",
                                          "train",
                                          "trains",
                                          "strain",
                                          "tables",
                                          "don't",
                                          "foo_bar",
                                          "(x,y);",
                                          "12345",
                                          "2024-11-03",
                                          bytes_of(u8"über"),
                                          bytes_of(u8"naïve"),
                                          bytes_of(u8"Привет"),
                                          bytes_of(u8"приветствие"),
                                          bytes_of(u8"日本語"),
                                          bytes_of(u8"日本"),
                                          bytes_of(u8"中文"),
                                          bytes_of(u8"한국어"),
                                          bytes_of(u8"🙂"),
                                          bytes_of(u8"👩‍👧"),
                                          bytes_of(u8"ﬁne"),
                                          bytes_of(u8"①②"),
                                          "<sep>",
                                          "foo",
                                          "foobar",
                                          "cls"};
  RandomStream random(11);
  std::vector<std::string> lines;
  for (int i = 0; i < 400; ++i) {
    std::string line;
    for (uint64_t n = 3 + random.below(20); n > 0; --n) {
      line += words[random.below(random.below(words.size()) + 1)];
      line += random.below(8) == 0 ? "  " : " ";
    }
    lines.push_back(line);
  }
  return lines;
}

std::string train_reference(const Arguments& arguments) {
  Arguments all = {{"minloglevel", "2"},
                   {"vocab_size", "420"},
                   {"hard_vocab_limit", "false"},
                   {"num_threads", "1"},
                   {"allow_whitespace_only_pieces", "true"}};
  for (const auto& [key, value] : arguments) all[key] = value;
  Corpus corpus(corpus_lines());
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(all, &corpus, &model);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return model;
}

/// Compares encoding and decoding on `count` random texts and id sequences.
void expect_same(const std::string& model, uint64_t seed, int count) {
  const SentencePieceTokenizer tokenizer(model, "test.model");
  const auto reference = reference_processor(model);
  std::vector<std::string> pieces;
  for (const auto& piece : tokenizer.model().pieces) pieces.push_back(piece.text);
  ASSERT_EQ(tokenizer.vocab_size(), reference->GetPieceSize());
  EXPECT_EQ(tokenizer.unk_id(), reference->unk_id());
  EXPECT_EQ(tokenizer.bos_id(), reference->bos_id());
  EXPECT_EQ(tokenizer.eos_id(), reference->eos_id());
  EXPECT_EQ(tokenizer.pad_id(), reference->pad_id());

  RandomStream random(seed);
  for (int i = 0; i < count; ++i) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", case " + std::to_string(i));
    const std::string text = random_text(random, pieces);
    std::vector<int> expected;
    ASSERT_TRUE(reference->Encode(text, &expected).ok());
    ASSERT_EQ(tokenizer.encode(text), expected) << testing::PrintToString(text);

    std::vector<int> ids = expected;
    if (i % 2 == 0) {
      ids.clear();
      for (uint64_t n = random.below(20); n > 0; --n) {
        ids.push_back(static_cast<int>(random.below(pieces.size())));
      }
    }
    std::string decoded;
    ASSERT_TRUE(reference->Decode(ids, &decoded).ok());
    ASSERT_EQ(to_valid_utf8(tokenizer.decode(ids)), decoded) << testing::PrintToString(ids);
  }
}

struct Case {
  std::string name;
  Arguments arguments;
};

class SentencePieceParity : public testing::TestWithParam<Case> {};

TEST_P(SentencePieceParity, EncodesAndDecodesAsTheLibrary) {
  expect_same(train_reference(GetParam().arguments), 101, 1500);
}

INSTANTIATE_TEST_SUITE_P(
    Models, SentencePieceParity,
    testing::Values(Case{"BpeIdentityBytes",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"},
                          {"byte_fallback", "true"},
                          {"vocab_size", "520"},
                          {"split_digits", "true"}}},
                    Case{"BpeIdentityNoBytes",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"}}},
                    Case{"BpeAcrossWords",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"},
                          {"split_by_whitespace", "false"},
                          {"split_by_unicode_script", "false"},
                          {"split_by_number", "false"}}},
                    Case{"BpeNmtNfkc", {{"model_type", "bpe"}}},
                    Case{"BpeNfkcCaseFolded",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "nmt_nfkc_cf"},
                          {"byte_fallback", "true"},
                          {"vocab_size", "520"}}},
                    Case{"BpeUserDefined",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "nfkc"},
                          {"remove_extra_whitespaces", "false"},
                          {"user_defined_symbols", "<sep>,foo,the rain,  ,\xEF\xAC\x81"},
                          {"control_symbols", "<cls>"},
                          {"pad_id", "3"}}},
                    Case{"BpeSuffix",
                         {{"model_type", "bpe"}, {"treat_whitespace_as_suffix", "true"}}},
                    Case{"BpeNoPrefix",
                         {{"model_type", "bpe"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"},
                          {"add_dummy_prefix", "false"}}},
                    Case{"BpeTrimmedIdentity",
                         {{"model_type", "bpe"}, {"normalization_rule_name", "identity"}}},
                    Case{"UnigramNmtNfkc", {{"model_type", "unigram"}, {"vocab_size", "150"}}},
                    Case{"UnigramBytesUserDefined",
                         {{"model_type", "unigram"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"},
                          {"byte_fallback", "true"},
                          {"vocab_size", "400"},
                          {"user_defined_symbols", "<sep>,foo"}}}),
    [](const auto& instance) { return instance.param.name; });

TEST(SentencePieceParity, UnusedPiecesAreTakenApartAgain) {
  for (const bool user_defined : {false, true}) {
    auto model = parse_sentencepiece_model(
        train_reference({{"model_type", "bpe"},
                         {"normalization_rule_name", "identity"},
                         {"remove_extra_whitespaces", "false"},
                         {"user_defined_symbols", user_defined ? "<sep>,foo" : ""}}),
        "test.model");
    RandomStream random(5);
    for (auto& piece : model.pieces) {
      if (piece.type == SentencePieceModel::PieceType::normal && random.below(3) == 0) {
        piece.type = SentencePieceModel::PieceType::unused;
      }
    }
    expect_same(serialize(model), 102, 1500);
  }
}

TEST(SentencePieceParity, SpacesMayStayUnescaped) {
  auto model = parse_sentencepiece_model(
      train_reference({{"model_type", "bpe"}, {"normalization_rule_name", "identity"}}),
      "test.model");
  model.escape_whitespaces = false;
  for (auto& piece : model.pieces) {
    if (piece.text.starts_with(kSpaceSymbol)) piece.text.replace(0, kSpaceSymbol.size(), " ");
  }
  expect_same(serialize(model), 103, 500);
}

TEST(SentencePieceParity, EqualScoresMergeLeftmostFirst) {
  auto model = parse_sentencepiece_model(
      train_reference({{"model_type", "bpe"}, {"normalization_rule_name", "identity"}}),
      "test.model");
  for (auto& piece : model.pieces) piece.score = std::floor(piece.score / 40);
  expect_same(serialize(model), 104, 1500);
}

TEST(SentencePieceParity, MixtralsTokenizerOnRandomTexts) {
  const auto path = shared_file("data/mistral-tokenizer-v1.model");
  if (path.empty()) GTEST_SKIP() << "no shared/data/mistral-tokenizer-v1.model";
  expect_same(read_file(path), 105, 8000);
}

TEST(SentencePieceParity, MixtralsTokenizerOnRealText) {
  const auto path = shared_file("data/mistral-tokenizer-v1.model");
  if (path.empty()) GTEST_SKIP() << "no shared/data/mistral-tokenizer-v1.model";
  const auto tokenizer = SentencePieceTokenizer::load(path);
  const auto reference = reference_processor(read_file(path));
  for (const char* file : {"data/wikitext-2-valid.txt", "data/tinyshakespeare.txt"}) {
    const std::string text = read_file(shared_file(file));
    for (size_t at = 0; at < text.size();) {
      // Every fourth line, and now and then several lines at once.
      size_t end = std::min(text.find('\n', at), text.size());
      if (at % 7 == 0) end = std::min(text.find('\n', end + 200), text.size());
      const std::string part = text.substr(at, end - at);
      at = end + 1;
      if (at % 4 != 0) continue;
      std::vector<int> expected;
      ASSERT_TRUE(reference->Encode(part, &expected).ok());
      ASSERT_EQ(tokenizer->encode(part), expected) << file << ": " << part;
      ASSERT_EQ(tokenizer->decode(expected), part);
    }
  }
}

}  // namespace
}  // namespace mixtral
