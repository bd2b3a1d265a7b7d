#include "data/corpus.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/batches.h"
#include "data/check.h"
#include "data/splits.h"
#include "tests/data/files_fixture.h"
#include "tests/support/files.h"
#include "tests/support/source_directory.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
constexpr int32_t kMasked = -100;

TEST(Corpus, PromptsAreMaskedAndBosAndEosAdded) {
  const auto tokenizer = load_tokenizer("bytes");
  ASSERT_GE(tokenizer->bos_id(), 0);
  EncodeOptions options;
  auto encode = [&](const char* line) {
    return encode_record(parse_record(line, "f:1", {}), tokenizer.get(), options, "f:1");
  };
  auto learnt = [&](const Example& example) {
    std::vector<int32_t> ids;
    for (int32_t label : example.labels) {
      if (label != kMasked && label != tokenizer->eos_id() && label != tokenizer->bos_id()) {
        ids.push_back(label);
      }
    }
    return tokenizer->decode(ids);
  };
  Example example = encode(R"({"text":"abc"})")[0];
  EXPECT_EQ(example.tokens.size(), 5u);
  EXPECT_EQ(example.tokens.front(), tokenizer->bos_id());
  EXPECT_EQ(example.tokens.back(), tokenizer->eos_id());
  EXPECT_EQ(example.labels, example.tokens);
  example = encode(R"({"prompt":"question ","completion":"answer"})")[0];
  EXPECT_EQ(learnt(example), "answer");
  EXPECT_EQ(example.labels.back(), tokenizer->eos_id());
  options.mask_prompt = true;
  example = encode(R"({"text":"###user: Who? ###Assistant: Mia"})")[0];
  EXPECT_EQ(learnt(example), " Mia");
  EXPECT_THROW(encode(R"({"text":"no marker"})"), Error);
  EXPECT_THROW(encode(R"({"text":"nothing after ###Assistant:"})"), Error);
  options.response_marker = "A:";
  EXPECT_EQ(learnt(encode(R"({"text":"Q: x A: y"})")[0]), " y");
  options.bos = options.eos = false;
  EXPECT_EQ(encode(R"({"text":"A: y"})")[0].tokens.size(), 4u);
  const auto pair = encode(R"({"prompt":"p","chosen":"good","rejected":"bad"})");
  ASSERT_EQ(pair.size(), 2u);
  EXPECT_EQ(learnt(pair[0]), "good");
  EXPECT_EQ(learnt(pair[1]), "bad");
  const auto chat = encode(
      R"({"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"reply"}]})");
  EXPECT_NE(learnt(chat[0]).find("reply"), std::string::npos);
  EXPECT_EQ(learnt(chat[0]).find('Q'), std::string::npos);
  EXPECT_THROW(encode_record(parse_record(R"({"text":"a"})", "f:1", {}), nullptr, options, "f:1"),
               Error);
}

TEST(Corpus, KeepsIdsOfAnySizeAndLabelsOfAnyKind) {
  Corpus corpus;
  corpus.add({{1, 2, 65535}, {1, 2, 65535}});
  corpus.add({{3, 4}, {-100, 4}});
  corpus.add({{70000, 5}, {-100, 7}});
  corpus.add({{6, 6}, {6, 6}});
  const std::vector<int32_t> tokens{1, 2, 65535, 3, 4, 70000, 5, 6, 6};
  const std::vector<int32_t> labels{1, 2, 65535, -100, 4, -100, 7, 6, 6};
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(corpus.token(static_cast<int64_t>(i)), tokens[i]);
    EXPECT_EQ(corpus.label(static_cast<int64_t>(i)), labels[i]);
  }
  EXPECT_EQ(corpus.counts().label_tokens, 5);
}

TEST_F(Files, ThreadsDoNotChangeTheCorpusAndTheCacheGivesItBack) {
  std::string text;
  for (int i = 0; i < 1000; ++i) {
    text += "{\"prompt\":\"number " + std::to_string(i) + "\",\"completion\":\" is here\"}\n";
  }
  write_file(root_ / "train.jsonl", text);
  const auto tokenizer = load_tokenizer("bytes");
  auto tokens_of = [](const Corpus& corpus) {
    std::vector<int32_t> all;
    for (int64_t i = 0; i < corpus.tokens(); ++i) {
      all.push_back(corpus.token(i));
      all.push_back(corpus.label(i));
    }
    return all;
  };
  ThreadPool one(1);
  const auto expected = tokens_of(load_corpus(root_ / "train.jsonl", tokenizer.get(), {}, one));
  CorpusOptions options;
  options.cache = root_ / "cache";
  const RecordFile file(root_ / "train.jsonl");
  CorpusResult first = read_corpus(file, tokenizer.get(), options, pool_);
  EXPECT_FALSE(first.from_cache);
  EXPECT_EQ(tokens_of(first.corpus), expected);
  CorpusResult second = read_corpus(file, tokenizer.get(), options, pool_);
  EXPECT_TRUE(second.from_cache);
  EXPECT_EQ(tokens_of(second.corpus), expected);
  EXPECT_EQ(second.corpus.counts().records, 1000);
  // Other options, or another tokenizer, are other tokens.
  CorpusOptions no_bos = options;
  no_bos.encode.bos = false;
  EXPECT_FALSE(read_corpus(file, tokenizer.get(), no_bos, pool_).from_cache);
  const auto plain = load_tokenizer("bytes-256");
  EXPECT_FALSE(read_corpus(file, plain.get(), options, pool_).from_cache);
  // A damaged cache is not used.
  for (const auto& entry : fs::directory_iterator(root_ / "cache")) {
    std::string bytes = read_file(entry.path());
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    write_file(entry.path(), bytes);
  }
  CorpusResult third = read_corpus(file, tokenizer.get(), options, pool_);
  EXPECT_FALSE(third.from_cache);
  EXPECT_EQ(tokens_of(third.corpus), expected);
}

TEST_F(Files, APlainTextTrainsOnItsBeginningAndValidatesOnItsEndInWindows) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>('a' + i % 26);
  write_file(root_ / "book.txt", text);
  const auto tokenizer = load_tokenizer("bytes-256");
  const DataFiles files = DataFiles::find(root_ / "book.txt");
  const Corpus train = load_split(files, Split::train, 0.1, tokenizer.get(), {}, pool_);
  const Corpus val = load_split(files, Split::val, 0.1, tokenizer.get(), {}, pool_);
  EXPECT_EQ(train.tokens(), 900);
  EXPECT_EQ(val.tokens(), 100);
  BatchOptions options;
  options.context = 64;
  options.shuffle = false;
  options.endless = false;
  Batches batches(val, options);
  int64_t labels = 0;
  std::vector<int32_t> tokens;
  while (const auto batch = batches.next(1)) {
    labels += batch->label_count();
    tokens.insert(tokens.end(), batch->tokens.begin(), batch->tokens.end());
  }
  EXPECT_EQ(labels, 99);  // every token but the first, once
  EXPECT_EQ(tokenizer->decode(tokens), text.substr(900));
}

TEST_F(Files, APlainTextOfWhichNothingValidatesIsTrainedOnWhole) {
  write_file(root_ / "book.txt", "abcdefghij");
  const auto tokenizer = load_tokenizer("bytes-256");
  const DataFiles files = DataFiles::find(root_ / "book.txt");
  EXPECT_EQ(load_split(files, Split::train, 0, tokenizer.get(), {}, pool_).tokens(), 10);
  for (const Split split : {Split::val, Split::test}) {
    EXPECT_FALSE(has_split(files, split, 0));
    const std::string said =
        message_of([&] { load_split(files, split, 0, tokenizer.get(), {}, pool_); });
    EXPECT_NE(said.find("book.txt: there is no"), std::string::npos) << said;
  }
  CheckOptions check;
  check.validation_fraction = 0;
  EXPECT_EQ(check_data(files, tokenizer.get(), check, pool_).splits.size(), 1u);
}

TEST_F(Files, OneFileOfRecordsKeepsSomeForValidation) {
  std::string lines;
  for (int i = 0; i < 25; ++i) lines += "{\"input_ids\":[1," + std::to_string(i) + "]}\n";
  write_file(root_ / "all.jsonl", lines);
  const DataFiles files = DataFiles::find(root_ / "all.jsonl");
  const Corpus train = load_split(files, Split::train, 0.2, nullptr, {}, pool_);
  const Corpus val = load_split(files, Split::val, 0.2, nullptr, {}, pool_);
  EXPECT_EQ(train.documents(), 20);
  ASSERT_EQ(val.documents(), 5);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(val.token(2 * i + 1), 5 * i + 4);  // evenly spread
  EXPECT_EQ(validation_text(files, 0.2), "20% of the records, evenly spread");
  EXPECT_EQ(load_split(files, Split::train, 0, nullptr, {}, pool_).documents(), 25);
  // Of too few records none validates.
  write_file(root_ / "few.jsonl", "{\"input_ids\":[1,2]}\n{\"input_ids\":[1,3]}\n");
  const DataFiles few = DataFiles::find(root_ / "few.jsonl");
  EXPECT_FALSE(has_split(few, Split::val, 0.2));
  EXPECT_EQ(load_split(few, Split::train, 0.2, nullptr, {}, pool_).documents(), 2);
}

TEST_F(Files, AFolderOfTextsIsReadAsDocuments) {
  const auto tokenizer = load_tokenizer("bytes");
  fs::create_directories(root_ / "notes/deep");
  write_file(root_ / "notes/a.txt", std::string(100, 'a'));
  write_file(root_ / "notes/deep/b.md", std::string(50, 'b'));
  write_file(root_ / "notes/picture.png", "x");
  fs::create_symlink("/etc/passwd", root_ / "notes/link.txt");
  const DataFiles files = DataFiles::find(root_ / "notes");
  ASSERT_EQ(files.texts.size(), 2u);
  const Corpus train = load_split(files, Split::train, 0.1, tokenizer.get(), {}, pool_);
  const Corpus val = load_split(files, Split::val, 0.1, tokenizer.get(), {}, pool_);
  EXPECT_EQ(train.tokens(), 90 + 45 + 2);  // with BOS
  EXPECT_EQ(val.tokens(), 10 + 5 + 2);     // with EOS
  EXPECT_EQ(validation_text(files, 0.1), "the last 10% of each text");
  for (int i = 0; i < 20; ++i)
    write_file(root_ / "notes/deep" / (std::to_string(i) + ".txt"), "text " + std::to_string(i));
  const DataFiles many = DataFiles::find(root_ / "notes");
  EXPECT_EQ(load_split(many, Split::train, 0.1, tokenizer.get(), {}, pool_).documents(), 20);
  EXPECT_EQ(load_split(many, Split::val, 0.1, tokenizer.get(), {}, pool_).documents(), 2);
  // Beside records a README would be all that is learnt.
  write_file(root_ / "notes/data.jsonl", "{}\n");
  EXPECT_THROW(DataFiles::find(root_ / "notes"), Error);
}

TEST_F(Files, WhatHoldsTooLittleIsNamed) {
  const auto tokenizer = load_tokenizer("bytes-256");
  const auto said = [&](const std::string& name, const std::string& text, Split split) {
    write_file(root_ / name, text);
    return message_of(
        [&] { load_split(DataFiles::find(root_ / name), split, 0.1, tokenizer.get(), {}, pool_); });
  };
  const std::string empty = said("empty.txt", "", Split::train);
  EXPECT_TRUE(empty.ends_with("empty.txt: the text is empty")) << empty;
  const std::string brief = said("brief.txt", "a", Split::train);
  EXPECT_NE(brief.find("brief.txt: there is nothing from 0% to 90%"), std::string::npos) << brief;
  for (const auto& [name, text] :
       {std::pair("val.txt", "abcdefghij"), std::pair("one.jsonl", "{\"input_ids\":[7]}\n")}) {
    const std::string few = said(name, text, *name == 'v' ? Split::val : Split::train);
    EXPECT_NE(few.find(std::string(name) + ": there are fewer than two tokens"), std::string::npos)
        << few;
  }
}

TEST_F(Files, TinyShakespeareIsSplitAsItsUsersExpect) {
  const fs::path path = source_directory() / "../shared/data/tinyshakespeare.txt";
  if (!fs::exists(path)) GTEST_SKIP() << path << " is absent";
  const auto tokenizer = load_tokenizer("bytes-256");
  const DataFiles files = DataFiles::find(path);
  EXPECT_EQ(load_split(files, Split::train, 0.1, tokenizer.get(), {}, pool_).tokens(), 1003854);
  EXPECT_EQ(load_split(files, Split::val, 0.1, tokenizer.get(), {}, pool_).tokens(), 111540);
}

TEST_F(Files, RowsOfIdsNeedNoTokenizerAndPairsStayTogether) {
  write_file(root_ / "ids.jsonl",
             "{\"input_ids\":[5,6,7],\"labels\":[-100,-100,7]}\n{\"input_ids\":[8,9]}\n");
  const Corpus corpus = load_corpus(root_ / "ids.jsonl", nullptr, {}, pool_);
  BatchOptions options;
  options.shuffle = false;
  options.packing = Packing::off;
  options.rows = 2;
  Batches batches(corpus, options);
  const auto batch = batches.next();
  EXPECT_EQ(batch->tokens, (std::vector<int32_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ(batch->labels, (std::vector<int32_t>{-100, 7, -100, 9, -100}));

  std::string pairs;
  for (int i = 0; i < 20; ++i) {
    pairs += fmt::format(
                 R"({{"prompt_ids":[{0}],"chosen_ids":[100,{0}],"rejected_ids":[200,{0}]}})", i) +
             "\n";
  }
  write_file(root_ / "pairs.jsonl", pairs);
  const Corpus paired = load_corpus(root_ / "pairs.jsonl", nullptr, {}, pool_);
  EXPECT_TRUE(paired.is_paired());
  options.shuffle = true;
  options.rows = 4;
  Batches pair_batches(paired, options);
  EXPECT_EQ(pair_batches.rows_per_epoch(), 20);
  for (int step = 0; step < 10; ++step) {
    const auto rows = pair_batches.next();
    ASSERT_EQ(rows->sequences(), 8);
    for (size_t r = 0; r < 4; ++r) {
      const auto begin = static_cast<size_t>(rows->sequence_starts[2 * r]);
      EXPECT_EQ(rows->tokens[begin], rows->tokens[begin + 3]);
      EXPECT_EQ(rows->tokens[begin + 1], 100);
      EXPECT_EQ(rows->tokens[begin + 4], 200);
      EXPECT_EQ(rows->labels[begin], 100);
      EXPECT_EQ(rows->labels[begin + 2], kMasked);
    }
  }
}

TEST_F(Files, CheckReportsLeaksDuplicatesAndTruncations) {
  write_file(root_ / "train.jsonl",
             "{\"text\":\"one\"}\n{\"text\":\"one\"}\n{\"text\":\"a longer text than that\"}\n");
  write_file(root_ / "val.jsonl", "{\"text\":\"one\"}\n{\"text\":\"new\"}\n");
  const auto tokenizer = load_tokenizer("bytes");
  CheckOptions options;
  options.batches.context = 10;
  options.batches.packing = Packing::off;
  const CheckReport report = check_data(DataFiles::find(root_), tokenizer.get(), options, pool_);
  ASSERT_EQ(report.splits.size(), 2u);
  EXPECT_EQ(report.splits[0].counts.records, 3);
  EXPECT_EQ(report.splits[0].counts.duplicates, 1);
  EXPECT_EQ(report.splits[0].long_records, 1);
  EXPECT_EQ(report.splits[0].dropped_tokens, 15);
  EXPECT_EQ(report.splits[0].sample_bos, 1);
  EXPECT_EQ(report.splits[1].also_in_train, 1);
  EXPECT_EQ(report.problem_count(), 0);
}

TEST_F(Files, CheckReportsSplitsWithoutALabelAndControlTokensSpelledOut) {
  const std::string longer(40, 'p');
  write_file(root_ / "train.jsonl",
             "{\"prompt\":\"" + longer + "\",\"completion\":\"<s>a</s>\"}\n");
  const auto tokenizer = load_tokenizer("bytes");
  CheckOptions options;
  options.batches.context = 10;
  options.batches.packing = Packing::off;
  const CheckReport report = check_data(DataFiles::find(root_), tokenizer.get(), options, pool_);
  ASSERT_EQ(report.problem_count(), 1);
  EXPECT_NE(report.splits[0].problems[0].message.find("has a label within context 10"),
            std::string::npos);
  EXPECT_EQ(report.splits[0].spelled_controls, (std::vector<std::string>{"<s>", "</s>"}));
}

}  // namespace
}  // namespace mixtral
