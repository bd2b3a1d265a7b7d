// What must hold of attention's gradient beyond agreement within a tolerance.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "cuda_plan/attention_part.h"
#include "ops/context.h"

namespace mixtral {
namespace {

class AttentionGradient : public ::testing::TestWithParam<const char*> {};

TEST_P(AttentionGradient, ATokenThatSeesItselfAloneGivesQueriesAndKeysNone) {
  constexpr int64_t kTokens = 37, kWidth = 24;
  const ops::Heads heads{.query = 4, .kv = 2, .width = kWidth};
  const auto backend = make_backend(GetParam(), 2);
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  auto tensor = [&](Shape shape) { return ctx.allocate(shape); };
  const Tensor qkv = tensor({kTokens, heads.columns()}), dqkv = tensor(qkv.shape());
  const Tensor out = tensor({kTokens, 4 * kWidth}), dout = tensor(out.shape());
  const Tensor log_sum = tensor({kTokens, 4}), delta = tensor(log_sum.shape());
  std::vector<int32_t> host_starts{0, 30, 37};
  const Tensor starts = ctx.allocate({3}, Dtype::i32);
  backend->upload(Tensor(std::span(host_starts)), starts);
  ctx.run(ops::RandomNormal{.x = qkv, .seed = 5, .stream = 1, .deviation = 2});
  ctx.run(ops::RandomNormal{.x = dout, .seed = 5, .stream = 2, .deviation = 1});
  ctx.run(ops::Attention{.qkv = qkv,
                         .sequence_starts = starts,
                         .out = out,
                         .log_sum = log_sum,
                         .heads = heads,
                         .window = 1,
                         .scale = 0.2,
                         .longest = 30});
  ctx.run(ops::AttentionBackward{.qkv = qkv,
                                 .sequence_starts = starts,
                                 .out = out,
                                 .log_sum = log_sum,
                                 .dout = dout,
                                 .dqkv = dqkv,
                                 .delta = delta,
                                 .heads = heads,
                                 .window = 1,
                                 .scale = 0.2,
                                 .longest = 30});
  std::vector<float> gradient(static_cast<size_t>(dqkv.numel()));
  backend->download(dqkv, Tensor(gradient.data(), dqkv.shape(), Dtype::f32));
  for (int64_t n = 0; n < kTokens; ++n) {
    for (int64_t c = 0; c < (heads.query + heads.kv) * kWidth; ++c) {
      // Rounding alone: far below any gradient that an optimizer should follow.
      ASSERT_LE(std::abs(gradient[static_cast<size_t>(n * heads.columns() + c)]),
                GetParam() == std::string("cpu") ? 0.0f : 1e-6f)
          << "token " << n << " column " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionGradient, ::testing::Values("ref", "cpu"));

TEST(CachedAttentionOnAGpu, ALongRunIsTakenInTilesHoweverManySequencesTheCacheHas) {
  const ops::Heads heads{.query = 4, .kv = 2, .width = 16};
  const auto backend = make_planning_backend();
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::bf16);
  const auto split_kv_tokens = [&](int64_t decode_rows, int64_t run) {
    const int64_t tokens = decode_rows + run;
    const ops::CachedAttention op{
        .qkv = ctx.allocate({tokens, heads.columns()}),
        .positions = ctx.allocate({tokens}, Dtype::i32),
        .rows = ctx.allocate({tokens}, Dtype::i32),
        .cache = {.keys = ctx.allocate({512, 16, heads.kv, heads.width}),
                  .values = ctx.allocate({512, 16, heads.kv, heads.width}),
                  .table = ctx.allocate({256, 32}, Dtype::i32),
                  .type = ops::CacheType::bf16},
        .out = ctx.allocate({tokens, heads.query * heads.width}),
        .heads = heads,
        .decode_rows = decode_rows};
    check(op);
    return cuda_plan::split_kv_tokens(op);
  };
  EXPECT_EQ(split_kv_tokens(0, 256), 0);
  EXPECT_EQ(split_kv_tokens(255, 256), 255);
  EXPECT_EQ(split_kv_tokens(256, 0), 256);
  EXPECT_EQ(split_kv_tokens(256, 3), 259);  // too few for a tile
}

}  // namespace
}  // namespace mixtral
