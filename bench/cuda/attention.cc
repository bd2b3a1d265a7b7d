#include <cmath>
#include <numeric>
#include <utility>

#include "bench/cuda/bench.h"

// Attention of packed sequences and over the cache.
namespace mixtral::bench {
namespace {

void attention(const Bench& bench, const std::string& name, std::vector<int32_t> starts,
               const ops::Heads& heads, int64_t window, Dtype dtype) {
  Operands operands(bench.backend);
  const int64_t tokens = starts.back();
  int64_t longest = 0;
  for (size_t s = 1; s < starts.size(); ++s)
    longest = std::max<int64_t>(longest, starts[s] - starts[s - 1]);
  const Tensor at = operands.values({static_cast<int64_t>(starts.size())}, starts);
  const Tensor qkv = operands.floats({tokens, heads.columns()}, dtype);
  const Tensor out = operands.room({tokens, int64_t{heads.query} * heads.width}, dtype);
  const Tensor log_sum = operands.room({tokens, heads.query}, Dtype::f32);
  const double scale = 1 / std::sqrt(static_cast<double>(heads.width));
  bench.run(name, ops::Attention{.qkv = qkv,
                                 .sequence_starts = at,
                                 .out = out,
                                 .log_sum = log_sum,
                                 .heads = heads,
                                 .window = window,
                                 .scale = scale,
                                 .longest = longest});
  bench.run(name, ops::AttentionBackward{.qkv = qkv,
                                         .sequence_starts = at,
                                         .out = out,
                                         .log_sum = log_sum,
                                         .dout = operands.floats(out.shape(), dtype),
                                         .dqkv = operands.room(qkv.shape(), dtype),
                                         .delta = operands.room(log_sum.shape(), Dtype::f32),
                                         .heads = heads,
                                         .window = window,
                                         .scale = scale,
                                         .longest = longest});
}

/// Sequences of `length` tokens in pages, which lie in the pool one sequence after another, filled
/// from packed rows of as many tokens.
ops::KvView cache_of(Operands& operands, int32_t sequences, int32_t length, const ops::Heads& heads,
                     ops::CacheType type, const Tensor& qkv) {
  const auto size = static_cast<int32_t>(operands.backend().page_tokens());
  const int32_t pages = length / size;
  const Shape shape{int64_t{sequences} * pages, size, heads.kv,
                    ops::cached_width(type, heads.width)};
  std::vector<int32_t> table(static_cast<size_t>(sequences * pages));
  std::iota(table.begin(), table.end(), 0);
  const ops::KvView cache{.keys = operands.room(shape, stored_dtype(type)),
                          .values = operands.room(shape, stored_dtype(type)),
                          .table = operands.values({sequences, pages}, table),
                          .type = type};
  std::vector<int32_t> positions, rows;
  for (int32_t s = 0; s < sequences; ++s)
    for (int32_t t = 0; t < length; ++t) {
      positions.push_back(t);
      rows.push_back(s);
    }
  const auto count = static_cast<int64_t>(rows.size());
  operands.backend().run(ops::CacheAppend{.qkv = qkv,
                                          .positions = operands.values({count}, positions),
                                          .rows = operands.values({count}, rows),
                                          .cache = cache,
                                          .heads = heads});
  return cache;
}

constexpr ops::CacheType kCacheTypes[] = {ops::CacheType::bf16, ops::CacheType::f16,
                                          ops::CacheType::int8, ops::CacheType::fp8};

/// The caches of several layers in turn, so that none is in the second-level cache.
void decode_cached(const Bench& bench, int32_t sequences, int32_t length, ops::CacheType type) {
  const ops::Heads heads{32, 8, 128};
  Operands operands(bench.backend);
  std::vector<int32_t> rows(static_cast<size_t>(sequences));
  std::iota(rows.begin(), rows.end(), 0);
  const Tensor qkv = operands.floats({int64_t{sequences} * length, heads.columns()}, Dtype::bf16);
  ops::CachedAttention op{
      .qkv = qkv.slice(0, sequences),
      .positions = operands.values({sequences}, std::vector<int32_t>(rows.size(), length - 1)),
      .rows = operands.values({sequences}, rows),
      .cache = {},
      .out = operands.room({sequences, 4096}, Dtype::bf16),
      .heads = heads,
      .decode_rows = sequences,
      .scale = 0.088};
  std::vector<ops::KvView> layers;
  int64_t bytes = 0;
  while (bytes < int64_t{400} << 20 && layers.size() < 64) {
    layers.push_back(cache_of(operands, sequences, length, heads, type, qkv));
    bytes += layers.back().keys.bytes() + layers.back().values.bytes();
  }
  op.cache = layers.front();
  const double time = bench.seconds([&] {
    for (const ops::KvView& layer : layers) {
      op.cache = layer;
      bench.backend.run(op);
    }
  });
  bench.report(fmt::format("cached_attention decode {}x{} {}", sequences, length, to_string(type)),
               cost(op), time / static_cast<double>(layers.size()));
}

}  // namespace

void attentions(const Bench& bench) {
  const ops::Heads large{32, 8, 128}, seed{16, 8, 64};
  attention(bench, "8x7b 4x4096 bf16", even_offsets(4 * 4096, 4), large, 0, Dtype::bf16);
  attention(bench, "seed 8x2048 bf16", even_offsets(kTokens, 8), seed, 0, Dtype::bf16);
  attention(bench, "8x7b 16384 window 4096 bf16", {0, 16384}, large, 4096, Dtype::bf16);
  attention(bench, "8x7b packed bf16", {0, 700, 4096, 4100, 6000, 8192}, large, 0, Dtype::bf16);
  attention(bench, "seed 2x2048 f32", even_offsets(4096, 2), seed, 0, Dtype::f32);
}

void cached(const Bench& bench) {
  for (const auto& [sequences, length] : std::vector<std::pair<int32_t, int32_t>>{
           {1, 64}, {1, 512}, {1, 4096}, {1, 32768}, {8, 4096}, {32, 2048}})
    for (const auto type : kCacheTypes) decode_cached(bench, sequences, length, type);
  const ops::Heads heads{32, 8, 128};
  Operands operands(bench.backend);
  std::vector<int32_t> positions(4096);
  std::iota(positions.begin(), positions.end(), 0);
  const Tensor qkv = operands.floats({4096, heads.columns()}, Dtype::bf16);
  for (const auto type : kCacheTypes)
    bench.run(fmt::format("prefill 4096 {}", to_string(type)),
              ops::CachedAttention{.qkv = qkv,
                                   .positions = operands.values({4096}, positions),
                                   .rows = operands.values({4096}, std::vector<int32_t>(4096, 0)),
                                   .cache = cache_of(operands, 1, 4096, heads, type, qkv),
                                   .out = operands.room({4096, 4096}, Dtype::bf16),
                                   .heads = heads,
                                   .scale = 0.088});
}

}  // namespace mixtral::bench
