#include "text/sentencepiece_training.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/text/text_cases.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {
namespace {

using testing::HasSubstr;

SentencePieceTraining small() {
  SentencePieceTraining settings;
  settings.vocab_size = 330;
  return settings;
}

TEST(SentencePieceTraining, MakesAModelLikeMixtrals) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  const SentencePieceModel& model = tokenizer.model();
  EXPECT_EQ(model.pieces.size(), 400u);
  EXPECT_EQ(tokenizer.unk_id(), 0);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.pad_id(), -1);
  EXPECT_EQ(model.byte_ids[0], 3);
  EXPECT_EQ(model.byte_ids[255], 258);
  EXPECT_TRUE(model.byte_fallback && model.add_dummy_prefix);
  EXPECT_FALSE(model.remove_extra_whitespaces);
  EXPECT_EQ(model.kind, SentencePieceModel::Kind::bpe);
  EXPECT_EQ(model.normalizer, "identity");
  EXPECT_TRUE(model.charsmap.empty());
  // It has learned something, and digits stay apart.
  EXPECT_EQ(tokenizer.encode("the river").size(), 2u);
  EXPECT_GE(tokenizer.encode("1984").size(), 4u);
  // No path of the machine it was trained on ends up in the file.
  EXPECT_THAT(own_model(), testing::Not(HasSubstr("/tmp")));
}

TEST(SentencePieceTraining, TheSameTextGivesTheSameBytes) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "a.txt", plain_text(1, 500));
  const auto once = train_sentencepiece({directory.path() / "a.txt"}, small());
  EXPECT_EQ(train_sentencepiece({directory.path() / "a.txt"}, small()).model, once.model);
}

TEST(SentencePieceTraining, ReadsEveryRecordKindAndPlainText) {
  const TemporaryDirectory directory;
  const std::string text = plain_text(2, 400);
  write_file(directory.path() / "plain.txt", text);
  std::string rows;
  size_t at = 0;
  for (int i = 0; at < text.size(); ++i) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const std::string a = line.substr(0, 8), b = line.substr(8);
    switch (i % 4) {
      case 0:
        rows += fmt::format(R"({{"text": "{}"}})", line);
        break;
      case 1:
        rows += fmt::format(R"({{"messages": [{{"role": "user", "content": "{}"}}]}})", line);
        break;
      case 2:
        rows += fmt::format(R"({{"prompt": "{}", "completion": "{}"}})", a, b);
        break;
      default:
        rows += fmt::format(R"({{"prompt": "{}", "chosen": "{}", "rejected": ""}})", a, b);
        break;
    }
    rows += '\n';
  }
  write_file(directory.path() / "train.jsonl", rows);
  const auto plain = train_sentencepiece({directory.path() / "plain.txt"}, small());
  const auto records = train_sentencepiece({directory.path()}, small());  // its train.jsonl
  EXPECT_EQ(plain.text_bytes, records.text_bytes);
  EXPECT_EQ(plain.text_lines, 400u);
  EXPECT_EQ(records.text_lines, 600u);
}

TEST(SentencePieceTraining, LargeTextIsSampledTheSameWayEachTime) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "a.txt", plain_text(3, 4000));
  auto settings = small();
  settings.sample_bytes = 50000;
  const auto first = train_sentencepiece({directory.path() / "a.txt"}, settings);
  EXPECT_LE(first.sampled_bytes, 50000u);
  EXPECT_GT(first.sampled_bytes, 25000u);
  EXPECT_EQ(first.text_lines, 4000u);
  EXPECT_EQ(train_sentencepiece({directory.path() / "a.txt"}, settings).model, first.model);
}

TEST(SentencePieceTraining, LinesWithoutEndAreCut) {
  const TemporaryDirectory directory;
  std::string text = plain_text(4, 1000);
  std::replace(text.begin(), text.end(), '\n', ' ');
  write_file(directory.path() / "a.txt", text + std::string(20000, 'x'));
  const auto trained = train_sentencepiece({directory.path() / "a.txt"}, small());
  EXPECT_GT(trained.text_lines, text.size() / 4097);
  EXPECT_EQ(trained.sampled_bytes, trained.text_bytes);
}

TEST(SentencePieceTraining, ErrorsSayWhatToDo) {
  const TemporaryDirectory directory;
  const auto path = [&](const char* file) { return directory.path() / file; };
  write_file(path("few.txt"), "a b a b\n");
  write_file(path("empty.txt"), "\n\n");
  write_file(path("bad.jsonl"), "{\"text\": \"fine\"}\n{\"text\": 5}\n");
  write_file(path("ids.jsonl"), "{\"input_ids\": [1, 2]}\n");
  const auto message = [&](const char* file) {
    return message_of([&] { train_sentencepiece({path(file)}, small()); });
  };
  EXPECT_THAT(message("few.txt"), HasSubstr("fewer than the 330 asked for"));
  EXPECT_THAT(message("empty.txt"), HasSubstr("no text to train a tokenizer on"));
  EXPECT_THAT(message("bad.jsonl"), HasSubstr("bad.jsonl:2: text: expected a string"));
  EXPECT_THAT(message("ids.jsonl"), HasSubstr("cannot be trained on token ids"));
  EXPECT_THAT(message("none.txt"), HasSubstr("none.txt"));
  auto settings = small();
  settings.vocab_size = 100;
  EXPECT_THROW(train_sentencepiece({path("few.txt")}, settings), UsageError);
}

}  // namespace
}  // namespace mixtral
