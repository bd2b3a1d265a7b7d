#include "data/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

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
  EXPECT_EQ(said.find("--data x: train: none of 2 records has a label within context 8"), 0u)
      << said;
  EXPECT_NE(said.find("context 13 or more, or pack on"), std::string::npos) << said;
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

}  // namespace
}  // namespace mixtral
