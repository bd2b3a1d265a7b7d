#include "data/batches.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "data/check.h"
#include "data/import.h"
#include "data/splits.h"
#include "tests/support/files.h"
#include "tests/support/source_directory.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
constexpr int32_t kMasked = -100;

/// Documents whose tokens say where they come from: document d is d * 1000, d * 1000 + 1, …
Corpus numbered_corpus(const std::vector<int>& lengths) {
  Corpus corpus;
  for (size_t d = 0; d < lengths.size(); ++d) {
    Example example;
    for (int i = 0; i < lengths[d]; ++i) {
      example.tokens.push_back(static_cast<int32_t>(d) * 1000 + i);
    }
    example.labels = example.tokens;
    corpus.add(example);
  }
  return corpus;
}

std::vector<int> random_lengths(RandomStream& random) {
  std::vector<int> lengths(1 + random.below(60));
  for (int& length : lengths)
    length = static_cast<int>(1 + random.below(random.below(4) ? 20 : 90));
  return lengths;
}

/// Checks a batch against the numbered corpus and returns its tokens that got a label, and tokens.
void check_batch(const HostBatch& batch, const std::vector<int>& lengths, Packing packing,
                 std::map<int32_t, int>& seen, std::map<int32_t, int>& labelled) {
  ASSERT_EQ(batch.sequence_starts.front(), 0);
  ASSERT_EQ(batch.sequence_starts.back(), batch.size());
  ASSERT_EQ(batch.labels.size(), batch.tokens.size());
  ASSERT_EQ(batch.positions.size(), batch.tokens.size());
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const auto begin = static_cast<size_t>(batch.sequence_starts[static_cast<size_t>(s)]);
    const auto end = static_cast<size_t>(batch.sequence_starts[static_cast<size_t>(s) + 1]);
    ASSERT_LT(begin, end);
    const int32_t document = batch.tokens[begin] / 1000;
    for (size_t i = begin; i < end; ++i) {
      ASSERT_EQ(batch.tokens[i], batch.tokens[begin] + static_cast<int32_t>(i - begin))
          << "a sequence crosses documents or skips tokens";
      ASSERT_EQ(batch.tokens[i] / 1000, document);
      ASSERT_EQ(batch.positions[i], static_cast<int32_t>(i - begin));
      ++seen[batch.tokens[i]];
      const bool last = batch.tokens[i] % 1000 + 1 == lengths[static_cast<size_t>(document)];
      if (last || (packing == Packing::off && i + 1 == end)) {
        ASSERT_EQ(batch.labels[i], kMasked);
      } else {
        ASSERT_EQ(batch.labels[i], batch.tokens[i] + 1);
        ++labelled[batch.labels[i]];
      }
    }
  }
}

TEST(Batches, PackingNeverCrossesDocumentsAndLosesNothing) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomStream random(seed);
    const auto lengths = random_lengths(random);
    const Corpus corpus = numbered_corpus(lengths);
    if (corpus.counts().label_tokens == 0) continue;
    for (Packing packing : {Packing::off, Packing::on, Packing::fill}) {
      for (bool shuffle : {false, true}) {
        BatchOptions options;
        options.context = static_cast<int64_t>(2 + random.below(40));
        options.rows = static_cast<int64_t>(1 + random.below(5));
        options.packing = packing;
        options.shuffle = shuffle;
        options.endless = false;
        options.seed = seed;
        Batches batches(corpus, options);
        std::map<int32_t, int> seen, labelled;
        int64_t tokens = 0, rows = 0;
        while (const auto batch = batches.next()) {
          ASSERT_NO_FATAL_FAILURE(check_batch(*batch, lengths, packing, seen, labelled));
          ASSERT_LE(batch->size(), options.rows * options.context);
          if (packing == Packing::fill && rows + options.rows <= batches.rows_per_epoch() - 1) {
            ASSERT_EQ(batch->size(), options.rows * options.context);
          }
          tokens += batch->size();
          rows = batches.row();
        }
        EXPECT_EQ(rows, batches.rows_per_epoch());
        EXPECT_EQ(tokens, batches.tokens_per_epoch());
        for (const auto& [token, n] : seen) ASSERT_EQ(n, 1) << token;
        for (const auto& [token, n] : labelled) ASSERT_EQ(n, 1) << token;
        int64_t expected = 0;  // every token but each document's first is learnt once
        for (int length : lengths) {
          expected +=
              packing == Packing::off ? std::min<int64_t>(length, options.context) - 1 : length - 1;
        }
        EXPECT_EQ(static_cast<int64_t>(labelled.size()), expected);
      }
    }
  }
}

TEST(Batches, WithoutShufflingAndPackingRecordsComeInFileOrderOneARow) {
  const std::vector<int> lengths{5, 3, 9, 1, 4};
  const Corpus corpus = numbered_corpus(lengths);
  BatchOptions options;
  options.context = 6;
  options.rows = 2;
  options.packing = Packing::off;
  options.shuffle = false;
  Batches batches(corpus, options);
  const auto first = batches.next();
  EXPECT_EQ(first->tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 1000, 1001, 1002}));
  EXPECT_EQ(first->labels, (std::vector<int32_t>{1, 2, 3, 4, -100, 1001, 1002, -100}));
  EXPECT_EQ(first->sequence_starts, (std::vector<int32_t>{0, 5, 8}));
  EXPECT_EQ(first->label_count(), 6);
  // The record of one token has nothing to learn, and is left out.
  EXPECT_EQ(batches.unlabelled_records(), 1);
  const auto second = batches.next(1);
  EXPECT_EQ(second->tokens, (std::vector<int32_t>{2000, 2001, 2002, 2003, 2004, 2005}));
  EXPECT_EQ(second->labels.back(), kMasked);
  // An endless source goes on with the next epoch in the same batch.
  const auto third = batches.next();
  EXPECT_EQ(third->tokens, (std::vector<int32_t>{4000, 4001, 4002, 4003, 0, 1, 2, 3, 4}));
  EXPECT_EQ(batches.epoch(), 1u);
  EXPECT_EQ(batches.long_records(), 1);
  EXPECT_EQ(batches.dropped_tokens(), 3);
}

TEST(Batches, ResumingFromAnyPositionEqualsGoingOn) {
  RandomStream random(7);
  const Corpus corpus = numbered_corpus(random_lengths(random));
  for (bool windows : {false, true}) {
    for (Packing packing : {Packing::off, Packing::on, Packing::fill}) {
      BatchOptions options;
      options.context = 16;
      options.rows = 3;
      options.packing = packing;
      options.random_windows = windows;
      Batches whole(corpus, options);
      std::vector<std::string> positions;
      std::vector<HostBatch> expected;
      for (int step = 0; step < 60; ++step) {
        positions.push_back(whole.position());
        expected.push_back(*whole.next());
      }
      EXPECT_GT(whole.epoch(), 1u);
      for (size_t from = 0; from < positions.size(); from += 7) {
        Batches resumed(corpus, options);
        resumed.restore(Json::parse(positions[from], "state"));
        for (size_t step = from; step < expected.size(); ++step) {
          const HostBatch batch = *resumed.next();
          ASSERT_EQ(batch.tokens, expected[step].tokens) << from << " " << step;
          ASSERT_EQ(batch.labels, expected[step].labels);
          ASSERT_EQ(batch.sequence_starts, expected[step].sequence_starts);
        }
      }
    }
  }
}

TEST(Batches, ShufflingDiffersByEpochAndSeedAndIsAPermutation) {
  const Corpus corpus = numbered_corpus(std::vector<int>(50, 4));
  auto epoch = [&](uint64_t seed, int number) {
    BatchOptions options;
    options.context = 4;
    options.rows = 50;
    options.packing = Packing::off;
    options.seed = seed;
    Batches batches(corpus, options);
    for (int i = 0; i < number; ++i) (void)batches.next();
    return batches.next()->tokens;
  };
  EXPECT_EQ(epoch(1, 0), epoch(1, 0));
  EXPECT_NE(epoch(1, 0), epoch(1, 1));
  EXPECT_NE(epoch(1, 0), epoch(2, 0));
  auto sorted = epoch(1, 3);
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::set<int32_t>(sorted.begin(), sorted.end()).size(), 200u);
}

/// A record of a masked prompt and an answer.
Example prompted(int prompt, int answer) {
  Example example;
  for (int i = 0; i < prompt + answer; ++i) {
    example.tokens.push_back(i);
    example.labels.push_back(i < prompt ? kMasked : i);
  }
  return example;
}

TEST(Batches, EveryBatchHasALabelAndRecordsWithoutOneAreCounted) {
  Corpus corpus;
  for (int i = 0; i < 6; ++i) corpus.add(prompted(i % 2 == 0 ? 40 : 3, 4));
  for (const bool windows : {false, true}) {
    for (const Packing packing : {Packing::off, Packing::on, Packing::fill}) {
      SCOPED_TRACE(static_cast<int>(packing));
      BatchOptions options;
      options.context = 8;
      options.rows = 1;
      options.packing = packing;
      options.random_windows = windows;
      Batches batches(corpus, options);
      for (int i = 0; i < 40; ++i) ASSERT_GT(batches.next()->label_count(), 0);
      EXPECT_EQ(batches.unlabelled_records(), packing == Packing::off && !windows ? 3 : 0);
      // Whoever looks at all tokens can have all of them.
      options.labelled_only = false;
      options.endless = false;
      if (windows || packing != Packing::on) continue;
      Batches all(corpus, options);
      int64_t tokens = 0;
      while (const auto batch = all.next()) tokens += batch->size();
      EXPECT_EQ(tokens, corpus.tokens());
    }
  }
}

TEST(Batches, NothingToLearnIsRefusedWithTheContextThatWouldDo) {
  BatchOptions options;
  options.context = 8;
  options.packing = Packing::off;
  options.data = "--data x: train";
  Corpus cut;
  cut.add(prompted(20, 4));
  cut.add(prompted(12, 4));
  const std::string said = message_of([&] { Batches(cut, options); });
  EXPECT_EQ(said.find("--data x: train: none of 2 records has a label within --context 8"), 0u)
      << said;
  EXPECT_NE(said.find("--context 13 or more, or --pack on"), std::string::npos) << said;
  options.context = 13;
  EXPECT_EQ(Batches(cut, options).unlabelled_records(), 1);
  Corpus pair;
  pair.add(prompted(20, 4));
  pair.add(prompted(5, 4));
  pair.set_paired();
  EXPECT_NE(message_of([&] { Batches(pair, options); }).find("none of 1 pairs"), std::string::npos);
  options.context = 21;
  EXPECT_EQ(Batches(pair, options).rows_per_epoch(), 1);
  EXPECT_NE(message_of([&] {
              Batches(numbered_corpus({1, 1, 1}), BatchOptions{});
            }).find("none of 3 records has a label"),
            std::string::npos);
}

TEST(Batches, AWrongPositionIsRefused) {
  const Corpus corpus = numbered_corpus({10, 10});
  BatchOptions options;
  options.context = 5;
  Batches batches(corpus, options);
  const std::string good = batches.position();
  const Corpus other = numbered_corpus({10, 11});
  Batches other_batches(other, options);
  EXPECT_THROW(other_batches.restore(Json::parse(good, "state")), Error);
  options.seed = 2;
  Batches other_seed(corpus, options);
  EXPECT_THROW(other_seed.restore(Json::parse(good, "state")), Error);
  for (const char* bad : {"{}", "[]", R"({"seed":1,"epoch":-1,"row":0,"documents":2,"tokens":20})",
                          R"({"seed":1,"epoch":0,"row":999,"documents":2,"tokens":20})"}) {
    EXPECT_THROW(batches.restore(Json::parse(bad, "state")), Error) << bad;
  }
}

TEST(Batches, RandomWindowsCoverATextWithTheNextTokenAsLabel) {
  const Corpus corpus = numbered_corpus({900});
  BatchOptions options;
  options.context = 64;
  options.rows = 12;
  options.random_windows = true;
  Batches batches(corpus, options);
  std::set<int32_t> begins;
  for (int i = 0; i < 50; ++i) {
    const auto batch = batches.next();
    ASSERT_EQ(batch->size(), 12 * 64);
    ASSERT_EQ(batch->label_count(), 12 * 64);
    for (int64_t s = 0; s < 12; ++s) begins.insert(batch->tokens[static_cast<size_t>(s * 64)]);
    for (size_t t = 0; t < batch->tokens.size(); ++t) {
      ASSERT_EQ(batch->labels[t], batch->tokens[t] + 1);
    }
  }
  EXPECT_GT(begins.size(), 300u);
  EXPECT_LT(*begins.rbegin(), 900 - 64);
}

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

class Files : public ::testing::Test {
 protected:
  Files() : root_(fs::temp_directory_path() / ("batches_test_" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
  }
  ~Files() override { fs::remove_all(root_); }
  const fs::path root_;
  ThreadPool pool_{2};
};

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
    const std::string n = std::to_string(i);
    pairs += "{\"prompt_ids\":[" + n + "],\"chosen_ids\":[100," + n + "],\"rejected_ids\":[200," +
             n + "]}\n";
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
  EXPECT_NE(report.splits[0].problems[0].message.find("has a label within --context 10"),
            std::string::npos);
  EXPECT_EQ(report.splits[0].spelled_controls, (std::vector<std::string>{"<s>", "</s>"}));
}

TEST_F(Files, ImportCutsWhereItHurtsLeast) {
  const std::string text = "Chapter 1\n\n" + std::string(60, 'a') + ".\n\n" + std::string(60, 'b') +
                           ".\n\nChapter 2\n\n" + std::string(60, 'c') + ".\n";
  const auto pieces = split_document(text, 150);
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_TRUE(pieces[1].starts_with("Chapter 2"));
  for (const auto& [piece_text, limit] : std::vector<std::pair<std::string, int64_t>>{
           {std::string(1000, 'x'), 100}, {std::string(1000, '\n'), 100}, {"", 100}}) {
    std::string joined;
    for (const auto& piece : split_document(piece_text, limit)) {
      EXPECT_LE(static_cast<int64_t>(piece.size()), limit);
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    if (piece_text[0] == 'x') {
      EXPECT_EQ(joined, piece_text);
    }
  }
}

TEST_F(Files, ImportMendsEncodingsAndSkipsWhatIsNoText) {
  fs::create_directories(root_ / "in/deep");
  write_file(root_ / "in/a.txt", "\xEF\xBB\xBFwith a mark\r\nand CR LF\r\n");
  write_file(root_ / "in/b.txt", std::string("nul\0byte", 8));
  write_file(root_ / "in/c.md", "caf\xE9");
  write_file(root_ / "in/deep/d.txt", std::string("\xFF\xFEh\0i\0", 6));
  write_file(root_ / "in/e.txt", "  \n");
  write_file(root_ / "in/f.png", "picture");
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.out = root_ / "out";
  options.shares.val = options.shares.test = 0;
  const ImportSummary summary = import_texts(options);
  EXPECT_EQ(summary.files, 3);
  EXPECT_EQ(summary.skipped.size(), 2u);
  EXPECT_EQ(summary.notes.size(), 4u);
  EXPECT_EQ(
      read_file(root_ / "out/train.jsonl"),
      "{\"text\":\"with a mark\\nand CR LF\"}\n{\"text\":\"caf\uFFFD\"}\n{\"text\":\"hi\"}\n");
  options.encoding = TextEncoding::latin1;
  options.overwrite = true;
  options.inputs = {root_ / "in/c.md"};
  import_texts(options);
  EXPECT_EQ(read_file(root_ / "out/train.jsonl"), "{\"text\":\"caf\u00E9\"}\n");
  options.inputs = {root_ / "absent"};
  EXPECT_THROW(import_texts(options), Error);
}

TEST_F(Files, ImportWritesNothingUnlessItCanWriteEverything) {
  fs::create_directories(root_ / "in");
  for (int i = 0; i < 4; ++i)
    write_file(root_ / "in" / (std::to_string(i) + ".txt"), "text " + std::to_string(i));
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.out = root_ / "out";
  options.shares.val = 0.4;
  options.shares.test = 0.5;
  const std::string none = message_of([&] { import_texts(options); });
  EXPECT_NE(none.find("4 documents leave none to train on with --val 0.4 and --test 0.5"),
            std::string::npos)
      << none;
  EXPECT_FALSE(fs::exists(root_ / "out"));
  options.shares.test = 0;
  const auto files = [&] {
    const fs::directory_iterator all(root_ / "out");
    return std::distance(begin(all), end(all));
  };
  // Not over a split that is there, and not beside one that it does not make.
  fs::create_directories(root_ / "out");
  for (const auto& [name, says] :
       {std::pair("val.jsonl", "--overwrite"), std::pair("test.jsonl", "remove it")}) {
    write_file(root_ / "out" / name, "kept\n");
    const std::string said = message_of([&] { import_texts(options); });
    EXPECT_NE(said.find(std::string(name) + " exists"), std::string::npos) << said;
    EXPECT_NE(said.find(says), std::string::npos) << said;
    EXPECT_EQ(files(), 1);
    EXPECT_EQ(read_file(root_ / "out" / name), "kept\n");
    fs::remove(root_ / "out" / name);
  }
  import_texts(options);
  EXPECT_EQ(files(), 2);
  const std::string before = read_file(root_ / "out/train.jsonl");
  options.inputs = {root_ / "in/0.txt", root_ / "in/1.txt", root_ / "in/2.txt"};
  EXPECT_NE(message_of([&] { import_texts(options); }).find("--overwrite"), std::string::npos);
  EXPECT_EQ(read_file(root_ / "out/train.jsonl"), before);
  options.overwrite = true;
  import_texts(options);
  EXPECT_NE(read_file(root_ / "out/train.jsonl"), before);
}

TEST_F(Files, ImportDealsDocumentsOutBySeedWithoutRepeats) {
  fs::create_directories(root_ / "in");
  for (int i = 0; i < 40; ++i) {
    const std::string n = std::to_string(i);
    write_file(root_ / "in" / (n + ".txt"), "first part of " + n + "\n\nsecond part of " + n);
  }
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.shares.val = options.shares.test = 0.2;
  options.out = root_ / "one";
  const ImportSummary summary = import_texts(options);
  EXPECT_EQ(summary.documents[0], 24);
  EXPECT_EQ(summary.documents[1], 8);
  EXPECT_EQ(summary.documents[2], 8);
  options.out = root_ / "two";
  import_texts(options);
  for (const char* name : {"train.jsonl", "val.jsonl", "test.jsonl"}) {
    EXPECT_EQ(read_file(root_ / "one" / name), read_file(root_ / "two" / name));
  }
  options.shares.seed = 2;
  options.out = root_ / "three";
  import_texts(options);
  EXPECT_NE(read_file(root_ / "one/val.jsonl"), read_file(root_ / "three/val.jsonl"));
}

}  // namespace
}  // namespace mixtral
