// The cache's pages: what sequences hold, share and give back.
#include "model/kv_cache.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"

namespace mixtral {
namespace {

TEST(KvCacheInEightBits, TakesACodeANumberAndAScaleAHead) {
  const auto backend = make_backend("cpu", 1);
  ModelConfig config;
  config.num_layers = 3;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  for (const auto type : {ops::CacheType::int8, ops::CacheType::fp8}) {
    const KvCache cache(*backend, config,
                        {.sequences = 1, .context = 64, .page_tokens = 16, .type = type});
    EXPECT_EQ(cache.page_shape(), (Shape{6, 16, 2, 68}));
    EXPECT_EQ(cache.bytes(), 6 * 64 * 2 * 68 + 4 * 4);
  }
}

ModelConfig config_of(int64_t window) {
  ModelConfig config;
  config.num_layers = 2;
  config.num_heads = 2;
  config.num_kv_heads = 2;
  config.head_dim = 2;
  config.sliding_window = window;
  return config;
}

/// A cache on the reference device, and beside it what each sequence's tokens were.
class Rig {
 public:
  Rig(int64_t window, const KvCache::Options& options)
      : backend_(make_backend("ref")),
        arena_(*backend_),
        ctx_(*backend_, arena_, Dtype::f32),
        window_(window),
        cache_(*backend_, config_of(window), options) {}

  KvCache& cache() { return cache_; }
  std::map<int32_t, std::vector<float>>& tokens() { return tokens_; }

  /// Extends a sequence and writes numbers that occur once as the new tokens' keys and values.
  bool grow(int32_t sequence, int64_t count) {
    auto& tokens = tokens_[sequence];
    const auto length = static_cast<int64_t>(tokens.size());
    if (!cache_.extend(sequence, length + count)) return false;
    cache_.upload();
    const ArenaScope scope(arena_);
    const ops::Heads heads{2, 2, 2};
    const Tensor qkv = ctx_.allocate({count, heads.columns()});
    const Tensor positions = ctx_.allocate({count}, Dtype::i32);
    const Tensor rows = ctx_.allocate({count}, Dtype::i32);
    for (int64_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<float>(next_++));
      for (int64_t c = 0; c < heads.columns(); ++c)
        qkv.as<float>()[i * heads.columns() + c] = tokens.back();
      positions.as<int32_t>()[i] = static_cast<int32_t>(length + i);
      rows.as<int32_t>()[i] = sequence;
    }
    for (int64_t layer = 0; layer < 2; ++layer)
      ctx_.run(ops::CacheAppend{.qkv = qkv,
                                .positions = positions,
                                .rows = rows,
                                .cache = cache_.layer(layer),
                                .heads = heads});
    return true;
  }

  /// What the device would read differs from a sequence's tokens here, or nothing.
  std::optional<std::string> difference() {
    cache_.upload();
    for (const auto& [sequence, tokens] : tokens_) {
      const auto length = static_cast<int64_t>(tokens.size());
      if (cache_.length(sequence) != length) return fmt::format("length of {}", sequence);
      const int64_t first = window_ > 0 ? std::max<int64_t>(0, length - window_ + 1) : 0;
      if (first >= length) continue;
      for (int64_t layer = 0; layer < 2; ++layer) {
        const ops::KvView view = cache_.layer(layer);
        check_pages(view, sequence, first, length - 1);
        const int32_t* pages = view.table.as<int32_t>() + sequence * view.table.dim(1);
        for (int64_t t = first; t < length; ++t) {
          const int64_t size = view.page_tokens();
          const int64_t at = (pages[t / size] * size + t % size) * 4;
          for (const Tensor& tensor : {view.keys, view.values})
            for (int64_t c = 0; c < 4; ++c)
              if (tensor.as<float>()[at + c] != tokens[static_cast<size_t>(t)])
                return fmt::format("token {} of sequence {} in layer {}", t, sequence, layer);
        }
      }
    }
    return {};
  }

  /// Pages are owned by the table's entries and by `retained`, and by nobody else.
  std::optional<std::string> leak(const std::vector<int32_t>& retained) {
    std::vector<int64_t> owners(static_cast<size_t>(cache_.pages()), 0);
    for (int32_t page : retained) ++owners[static_cast<size_t>(page)];
    for (const auto& [sequence, tokens] : tokens_)
      for (int32_t page : cache_.pages_of(sequence))
        if (page != ops::kNoPage) ++owners[static_cast<size_t>(page)];
    int64_t unused = 0;
    for (size_t page = 0; page < owners.size(); ++page) {
      if (cache_.owners(static_cast<int32_t>(page)) != owners[page])
        return fmt::format("page {} has {} owners, not {}", page,
                           cache_.owners(static_cast<int32_t>(page)), owners[page]);
      unused += owners[page] == 0;
    }
    if (unused != cache_.free_pages()) return fmt::format("{} pages are free", unused);
    return {};
  }

 private:
  std::unique_ptr<Backend> backend_;
  Arena arena_;
  Context ctx_;
  int64_t window_;
  KvCache cache_;
  std::map<int32_t, std::vector<float>> tokens_;
  int64_t next_ = 1;
};

struct Case {
  int64_t window, page_tokens;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << "window " << c.window << ", pages of " << c.page_tokens;
  }
};

class KvCacheProperty : public ::testing::TestWithParam<Case> {};

TEST_P(KvCacheProperty, RandomUseKeepsEveryTokenAndLeaksNoPage) {
  constexpr uint64_t kSeed = 11;
  constexpr int64_t kContext = 40;
  RandomStream random(kSeed);
  // Room for about two of six sequences, with 9 new tokens at a time.
  const int64_t held = GetParam().window > 0 ? GetParam().window + 9 : kContext;
  Rig rig(GetParam().window, {.sequences = 6,
                              .context = kContext,
                              .pages = 2 * held / GetParam().page_tokens + 2,
                              .page_tokens = GetParam().page_tokens});
  KvCache& cache = rig.cache();
  std::vector<int32_t> retained;
  int64_t refused = 0, copied = 0;
  for (int step = 0; step < 3000; ++step) {
    SCOPED_TRACE(fmt::format("seed {}, step {}", kSeed, step));
    auto& tokens = rig.tokens();
    const uint64_t action = random.below(10);
    if (tokens.empty() || (action == 0 && cache.free_sequences() > 0)) {
      tokens[cache.open()];
      continue;
    }
    auto chosen = tokens.begin();
    std::advance(chosen, static_cast<int64_t>(random.below(tokens.size())));
    const int32_t sequence = chosen->first;
    const int64_t length = cache.length(sequence);
    const auto pages = cache.pages_of(sequence);
    if (action == 1 && cache.free_sequences() > 0) {
      const int32_t fork = cache.fork(sequence);
      tokens[fork] = tokens[sequence];
    } else if (action == 2) {
      const auto shorter = static_cast<int64_t>(random.below(static_cast<uint64_t>(length + 1)));
      if (cache.truncate(sequence, shorter)) tokens[sequence].resize(static_cast<size_t>(shorter));
    } else if (action == 3) {
      cache.close(sequence);
      tokens.erase(sequence);
    } else if (action == 4 && !pages.empty() && pages[0] != ops::kNoPage && retained.size() < 4) {
      cache.retain(pages[0]);
      retained.push_back(pages[0]);
    } else if (action == 5 && !retained.empty()) {
      cache.release(retained.back());
      retained.pop_back();
    } else if (action == 6 && GetParam().window == 0 && cache.free_sequences() > 0) {
      const auto full = static_cast<size_t>(length / cache.page_tokens());
      const int32_t opened = cache.open(pages.first(full));
      tokens[opened] = tokens[sequence];
      tokens[opened].resize(full * static_cast<size_t>(cache.page_tokens()));
    } else {
      const auto count =
          std::min<int64_t>(static_cast<int64_t>(1 + random.below(9)), cache.context() - length);
      const int64_t needed = cache.pages_to_extend(sequence, length + count);
      const int64_t free = cache.free_pages();
      const int32_t last = length % cache.page_tokens() != 0 ? pages.back() : ops::kNoPage;
      const bool grown = rig.grow(sequence, count);
      ASSERT_EQ(grown, needed <= free);
      refused += !grown;
      copied += grown && last != ops::kNoPage &&
                cache.pages_of(sequence)[static_cast<size_t>(length / cache.page_tokens())] != last;
    }
    ASSERT_EQ(rig.difference(), std::nullopt);
    ASSERT_EQ(rig.leak(retained), std::nullopt);
  }
  EXPECT_GT(refused, 10);
  if (GetParam().page_tokens > 1) {
    EXPECT_GT(copied, 10);
  }
  while (!rig.tokens().empty()) {
    cache.close(rig.tokens().begin()->first);
    rig.tokens().erase(rig.tokens().begin());
  }
  for (int32_t page : retained) cache.release(page);
  EXPECT_EQ(cache.free_pages(), cache.pages());
  EXPECT_EQ(cache.free_sequences(), cache.sequences());
}

INSTANTIATE_TEST_SUITE_P(All, KvCacheProperty,
                         ::testing::Values(Case{0, 4}, Case{0, 1}, Case{5, 4}, Case{1, 2},
                                           Case{9, 8}),
                         [](const auto& c) {
                           return fmt::format("window_{}_pages_of_{}", c.param.window,
                                              c.param.page_tokens);
                         });

TEST(KvCache, AForkSharesPagesUntilItWritesToOne) {
  Rig rig(0, {.sequences = 2, .context = 32, .page_tokens = 4});
  KvCache& cache = rig.cache();
  const int32_t first = cache.open();
  ASSERT_TRUE(rig.grow(first, 10));
  const int64_t before = cache.free_pages();
  const int32_t second = cache.fork(first);
  rig.tokens()[second] = rig.tokens()[first];
  EXPECT_EQ(cache.free_pages(), before);
  EXPECT_EQ(cache.pages_to_extend(second, 11), 1);  // a copy of the page that is partly filled
  ASSERT_TRUE(rig.grow(second, 1));
  EXPECT_EQ(cache.free_pages(), before - 1);
  EXPECT_EQ(cache.pages_of(first)[1], cache.pages_of(second)[1]);
  EXPECT_NE(cache.pages_of(first)[2], cache.pages_of(second)[2]);
  EXPECT_EQ(cache.pages_to_extend(first, 11), 0);  // it is the only owner again
  ASSERT_TRUE(rig.grow(first, 1));
  EXPECT_EQ(rig.difference(), std::nullopt);
}

TEST(KvCache, ASequenceWithAWindowNeverNeedsMorePagesThanAreCountedForIt) {
  for (const int64_t window : {1, 2, 7, 16, 33}) {
    for (const int64_t chunk : {1, 5, 16}) {
      for (const int64_t size : {1, 4, 16}) {
        SCOPED_TRACE(fmt::format("window {}, chunks of {}, pages of {}", window, chunk, size));
        Rig rig(window, {.context = 200, .chunk = chunk, .page_tokens = size});
        const int32_t sequence = rig.cache().open();
        for (int64_t length = 0; length < 200; length += chunk)
          ASSERT_TRUE(rig.cache().extend(sequence, std::min<int64_t>(200, length + chunk)));
        EXPECT_LE(rig.cache().pages() * size, window + chunk + 2 * size);
      }
    }
  }
}

TEST(KvCache, WhatTheLastExtendAddedCanBeTakenBackWithAWindow) {
  Rig rig(5, {.context = 60, .page_tokens = 2});
  const int32_t sequence = rig.cache().open();
  for (int64_t length = 0; length + 7 <= 60; length += 3) {
    ASSERT_TRUE(rig.cache().extend(sequence, length + 7));
    ASSERT_TRUE(rig.cache().truncate(sequence, length + 3));
  }
  EXPECT_FALSE(rig.cache().truncate(sequence, 20));
  EXPECT_TRUE(rig.cache().truncate(sequence, 0));
  EXPECT_EQ(rig.cache().free_pages(), rig.cache().pages());
}

TEST(KvCache, WhatAPlanCountsIsWhatItTakes) {
  const auto backend = make_planning_backend();
  for (const int64_t window : {0, 100}) {
    const KvCache::Options options{
        .sequences = 3, .context = 1000, .chunk = 64, .type = ops::CacheType::bf16};
    const int64_t before = backend->allocated();
    const KvCache cache(*backend, config_of(window), options);
    EXPECT_EQ(backend->allocated() - before, cache.bytes());
    EXPECT_EQ(KvCache::bytes_needed(*backend, config_of(window), options), cache.bytes());
  }
}

}  // namespace
}  // namespace mixtral
