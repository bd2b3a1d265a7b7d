// The same bits, whatever the threads, the batch and the way a sequence goes through the model.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "backends/registry.h"
#include "base/random.h"
#include "model/kv_cache.h"
#include "model/loss.h"

namespace mixtral {
namespace {

constexpr uint64_t kSeed = 5;

ModelConfig config_of(int64_t window) {
  ModelConfig config;
  config.vocab_size = 61;
  config.hidden_size = 48;
  config.intermediate_size = 40;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.num_experts = 5;
  config.experts_per_token = 2;
  config.max_positions = 128;
  config.rope_theta = 1e4;
  config.sliding_window = window;
  return config;
}

std::vector<std::vector<int32_t>> sequences() {
  RandomStream random(kSeed);
  std::vector<std::vector<int32_t>> all;
  for (const int length : {37, 1, 90, 16, 5}) {
    auto& ids = all.emplace_back();
    for (int i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random.below(61)));
  }
  return all;
}

HostBatch batch_of(const std::vector<std::vector<int32_t>>& rows) {
  HostBatch batch;
  for (const auto& row : rows) batch.append(row);
  return batch;
}

struct Rig {
  Rig(const std::string& device, int threads, int64_t window)
      : backend(make_backend(device, threads)),
        arena(*backend),
        ctx(*backend, arena, Dtype::f32),
        model(*backend, config_of(window), {.trainable = true}) {
    nn::initialise(
        *backend, model.parameters(),
        {.seed = kSeed, .deviation = 0.3, .residual_deviation = 0.3, .embedding_deviation = 1});
  }

  std::vector<float> host(const Tensor& device) {
    std::vector<float> values(static_cast<size_t>(device.numel()));
    backend->download(device, Tensor(values.data(), device.shape(), Dtype::f32));
    return values;
  }

  /// [tokens, vocabulary]
  std::vector<float> logits(const HostBatch& batch, KvCache* cache = nullptr) {
    const ArenaScope scope(arena);
    const Batch on_device = upload(ctx, batch, model.config().vocab_size, model.context());
    const Tensor hidden = model.forward(ctx, on_device, cache, nullptr, nullptr);
    const Tensor out = ctx.allocate({hidden.dim(0), model.config().vocab_size}, Dtype::f32);
    model.logits(ctx, hidden, out);
    return host(out);
  }

  /// Every parameter's gradient, end to end.
  std::vector<float> gradients(const HostBatch& batch) {
    const ArenaScope scope(arena);
    model.store().zero_gradients(*backend);
    const LossTotals totals = LossTotals::allocate(ctx);
    const Tensor scale = ctx.allocate({1}, Dtype::f32);
    ctx.run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(batch.label_count())});
    accumulate_gradients(
        ctx, model, upload(ctx, batch, model.config().vocab_size, model.context()),
        {.balance = Objective::Balance::per_layer, .aux_coefficient = 0.1, .z_coefficient = 0.01},
        {.label_scale = scale}, totals, nullptr);
    std::vector<float> all;
    for (const auto& group : model.store().groups()) {
      const auto values = host(group.grad);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  std::unique_ptr<Backend> backend;
  Arena arena;
  Context ctx;
  Mixtral model;
};

struct Case {
  const char* device;
  int64_t window;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.device << " " << c.window; }
};

class Bits : public ::testing::TestWithParam<Case> {};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_P(Bits, ARowsLogitsDoNotDependOnItsBatch) {
  Rig rig(GetParam().device, 2, GetParam().window);
  const auto rows = sequences();
  const auto together = rig.logits(batch_of(rows));
  size_t begin = 0;
  for (const auto& row : rows) {
    const auto alone = rig.logits(batch_of({row}));
    ASSERT_LE(begin + alone.size(), together.size());
    EXPECT_EQ(std::memcmp(alone.data(), together.data() + begin, alone.size() * sizeof(float)), 0)
        << "a row of " << row.size() << " tokens, seed " << kSeed;
    begin += alone.size();
  }
  EXPECT_EQ(begin, together.size());
}

TEST_P(Bits, ReadingInChunksAndTokenByTokenEqualsReadingAtOnce) {
  Rig rig(GetParam().device, 2, GetParam().window);
  const auto ids = sequences()[2];
  const auto length = static_cast<int64_t>(ids.size());
  const auto expected = rig.logits(batch_of({ids}));
  for (const int64_t chunk : {length, int64_t{31}, int64_t{1}}) {
    KvCache cache(*rig.backend, rig.model.config(), {.context = length, .chunk = chunk});
    const int32_t sequence = cache.open();
    std::vector<float> read;
    for (int64_t begin = 0; begin < length; begin += chunk) {
      HostBatch part;
      for (int64_t i = begin; i < std::min(length, begin + chunk); ++i) {
        part.tokens.push_back(ids[static_cast<size_t>(i)]);
        part.positions.push_back(static_cast<int32_t>(i));
        part.rows.push_back(sequence);
      }
      ASSERT_TRUE(cache.extend(sequence, std::min(length, begin + chunk)));
      cache.upload();
      part.sequence_starts = {0, static_cast<int32_t>(part.size())};
      const auto logits = rig.logits(part, &cache);
      read.insert(read.end(), logits.begin(), logits.end());
    }
    EXPECT_TRUE(same(read, expected)) << "chunks of " << chunk << ", seed " << kSeed;
  }
}

/// Appends tokens [begin, end) of a sequence to a batch over a cache, and makes room for them.
void add_run(HostBatch& batch, KvCache& cache, int32_t sequence, const std::vector<int32_t>& ids,
             int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    batch.tokens.push_back(ids[static_cast<size_t>(i)]);
    batch.positions.push_back(static_cast<int32_t>(i));
    batch.rows.push_back(sequence);
  }
  ASSERT_TRUE(cache.extend(sequence, end));
  cache.upload();
}

void add_padding(HostBatch& batch, int count) {
  for (int i = 0; i < count; ++i) {
    batch.tokens.push_back(0);
    batch.positions.push_back(ops::kPadding);
    batch.rows.push_back(0);
  }
}

TEST_P(Bits, ATokenOverACacheDoesNotDependOnTheSequencesAndThePaddingBesideIt) {
  Rig rig(GetParam().device, 2, GetParam().window);
  const auto rows = sequences();
  const auto vocabulary = static_cast<size_t>(rig.model.config().vocab_size);
  KvCache cache(*rig.backend, rig.model.config(), {.sequences = 4, .context = 128});
  const int32_t a = cache.open(), b = cache.open(), c = cache.open();
  HostBatch prompts;
  add_run(prompts, cache, a, rows[0], 0, 36);
  add_run(prompts, cache, b, rows[2], 0, 50);
  rig.logits(prompts, &cache);
  const int32_t fork = cache.fork(a);  // then both write to the page that they share
  HostBatch step;
  step.decode_rows = 5;
  add_run(step, cache, a, rows[0], 36, 37);
  add_padding(step, 3);
  add_run(step, cache, fork, rows[0], 36, 37);
  add_run(step, cache, b, rows[2], 50, 90);
  add_padding(step, 2);
  add_run(step, cache, c, rows[3], 0, 16);
  add_padding(step, 1);
  const auto logits = rig.logits(step, &cache);
  const auto expect_rows = [&](size_t at, const std::vector<int32_t>& ids, size_t begin) {
    const auto alone = rig.logits(batch_of({ids}));
    for (size_t i = begin; i < ids.size(); ++i)
      EXPECT_EQ(std::memcmp(&logits[(at + i - begin) * vocabulary], &alone[i * vocabulary],
                            vocabulary * sizeof(float)),
                0)
          << "token " << i << " of " << ids.size() << ", seed " << kSeed;
  };
  expect_rows(0, rows[0], 36);
  expect_rows(4, rows[0], 36);
  expect_rows(5, rows[2], 50);
  expect_rows(47, rows[3], 0);
}

TEST_P(Bits, GradientsDoNotDependOnThreads) {
  const HostBatch batch = batch_of(sequences());
  Rig one(GetParam().device, 1, GetParam().window);
  const auto expected = one.gradients(batch);
  for (const int threads : {2, 3, 4}) {
    Rig rig(GetParam().device, threads, GetParam().window);
    EXPECT_TRUE(same(rig.gradients(batch), expected)) << threads << " threads, seed " << kSeed;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Bits,
                         ::testing::Values(Case{"ref", 0}, Case{"cpu", 0}, Case{"cpu", 7}),
                         [](const auto& c) {
                           return fmt::format("{}_window_{}", c.param.device, c.param.window);
                         });

}  // namespace
}  // namespace mixtral
