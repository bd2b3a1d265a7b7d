#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace mixtral {
namespace {

TEST(ThreadPool, VisitsEveryItemOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      pool.for_each(count, [&](int64_t i, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, threads);
        ++visits[static_cast<size_t>(i)];
      });
      for (const auto& visit : visits) EXPECT_EQ(visit, 1);
    }
  }
}

TEST(ThreadPool, RangesCoverAndKeepTheGrain) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 15, 16, 17, 1000, 1024})
      for (const int64_t grain : {0, 1, 16, 100, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        pool.for_ranges(count, grain, [&](int64_t begin, int64_t end) {
          ASSERT_LT(begin, end);
          ASSERT_LE(end, count);
          ASSERT_EQ(begin % std::max<int64_t>(grain, 1), 0);
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const auto& visit : visits) ASSERT_EQ(visit, 1) << count << " by " << grain;
      }
  }
}

TEST(ThreadPool, ThreadsThatWaitAreIdle) {
  std::atomic<int64_t> callers{0}, workers{0};
  ThreadPool pool(2, [&](int thread) {
    ASSERT_GE(thread, 0);
    ASSERT_LT(thread, 2);
    ++(thread == 0 ? callers : workers);
  });
  // Each thread takes one item, as both begin before either ends. The caller waits for the other.
  std::atomic<int> begun{0};
  pool.for_each(2, [&](int64_t, int thread) {
    ++begun;
    while (begun < 2) std::this_thread::yield();
    if (thread != 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  });
  EXPECT_GT(callers, 0);
  // The other waits for the next loop.
  for (int i = 0; i < 10'000 && workers == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_GT(workers, 0);
}

// Hundreds of short loops in a row, and pauses long enough for the workers to fall asleep.
TEST(ThreadPool, LoopsFollowOneAnother) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64);
  for (int round = 0; round < 500; ++round)
    pool.for_each(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += i; });
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.for_each(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += i; });
  }
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 505 * i);
}

// A sum per item, each item a loop of its own: the same bits with any number of threads.
TEST(ThreadPool, ResultsDoNotDependOnThreads) {
  const auto compute = [](int threads) {
    ThreadPool pool(threads);
    std::vector<float> sums(37);
    pool.for_each(37, [&](int64_t i, int) {
      float sum = 0;
      for (int64_t j = 0; j < 1000; ++j) sum += 1.0f / static_cast<float>(i + j + 1);
      sums[static_cast<size_t>(i)] = sum;
    });
    return sums;
  };
  const auto expected = compute(1);
  for (const int threads : {2, 3, 7}) EXPECT_EQ(compute(threads), expected) << threads;
}

TEST(ThreadPool, PoolsNest) {
  ThreadPool outer(3);
  std::atomic<int64_t> sum = 0;
  outer.for_each(6, [&](int64_t i, int) {
    ThreadPool inner(2);
    inner.for_each(10, [&](int64_t j, int) { sum += 10 * i + j; });
  });
  EXPECT_EQ(sum, 59 * 60 / 2);
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 100; ++round) {
      EXPECT_THROW(pool.for_each(50,
                                 [&](int64_t i, int) {
                                   if (i == 17) throw std::runtime_error("item");
                                 }),
                   std::runtime_error);
      std::atomic<int> count = 0;
      pool.for_each(50, [&](int64_t, int) { ++count; });
      EXPECT_EQ(count, 50);
    }
  }
}

TEST(ThreadPool, CountsCores) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_EQ(ThreadPool(0).size(), available_cores());
}

}  // namespace
}  // namespace mixtral
