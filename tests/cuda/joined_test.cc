// Small ops of a decoding step that one launch computes together: the same results as one by one.
// Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "base/random.h"
#include "cuda/backend.h"
#include "tensor/buffer.h"

namespace mixtral {
namespace {

struct Joined {
  int64_t tokens, width, experts, chosen;
  bool padded;
};

class CudaJoined : public testing::TestWithParam<Joined> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU that the CUDA backend can use";
    backend_ = cuda::make_backend(0);
  }

  Tensor room(Shape shape, Dtype dtype) {
    const int64_t bytes = shape.numel() * size_of(dtype);
    buffers_.emplace_back(*backend_, bytes);
    return buffers_.back().tensor(shape, dtype);
  }
  Tensor floats(Shape shape, Dtype dtype) {
    const Tensor to = room(shape, dtype), whole = room(shape, Dtype::f32);
    std::vector<float> values(static_cast<size_t>(shape.numel()));
    for (float& value : values) value = static_cast<float>(random_.normal());
    backend_->upload(Tensor(std::span(values)).reshape(shape), whole);
    backend_->run(ops::Convert{.x = whole, .y = to});
    return to;
  }
  Tensor integers(Shape shape, std::vector<int32_t> values) {
    const Tensor to = room(shape, Dtype::i32);
    backend_->upload(Tensor(std::span(values)).reshape(shape), to);
    return to;
  }
  std::vector<float> floats_of(const Tensor& x) {
    const Tensor whole = room(x.shape(), Dtype::f32);
    backend_->run(ops::Convert{.x = x, .y = whole});
    std::vector<float> values(static_cast<size_t>(x.numel()));
    backend_->download(whole, Tensor(std::span(values)).reshape(x.shape()));
    return values;
  }
  std::vector<int32_t> integers_of(const Tensor& x) {
    std::vector<int32_t> values(static_cast<size_t>(x.numel()));
    backend_->download(x, Tensor(std::span(values)).reshape(x.shape()));
    return values;
  }
  /// Runs the ops as they are, then each by itself, and gives what `results` reads behind each.
  template <class Results>
  auto both(const std::vector<std::function<void()>>& ops, const Results& results) {
    for (const auto& op : ops) op();
    const auto joined = results();
    for (const auto& op : ops) {
      op();
      backend_->synchronize();
    }
    return std::pair(joined, results());
  }

  std::unique_ptr<Backend> backend_;
  std::vector<Buffer> buffers_;
  RandomStream random_{3};
};

TEST_P(CudaJoined, CombinedRowsAreNormalised) {
  const auto [tokens, width, experts, chosen, padded] = GetParam();
  const Tensor y = floats({tokens * chosen, width}, Dtype::bf16),
               residual = floats({tokens, width}, Dtype::bf16),
               weight = floats({width}, Dtype::bf16), out = room({tokens, width}, Dtype::bf16),
               norm = room({tokens, width}, Dtype::bf16), rstd = room({tokens}, Dtype::f32);
  std::vector<int32_t> slots(static_cast<size_t>(tokens * chosen));
  std::iota(slots.rbegin(), slots.rend(), 0);
  if (padded) std::fill_n(slots.begin(), chosen, -1);
  const Tensor slot = integers({tokens, chosen}, slots);
  const auto [joined, apart] = both(
      {[&] {
         backend_->run(ops::CombineRows{.y = y, .slot = slot, .residual = residual, .out = out});
       },
       [&] { backend_->run(ops::RmsNorm{.x = out, .weight = weight, .y = norm, .rstd = rstd}); }},
      [&] { return std::vector{floats_of(out), floats_of(norm), floats_of(rstd)}; });
  EXPECT_EQ(joined, apart);
}

/// The norm also makes the fixed-point rows of a product by integer codes.
TEST_P(CudaJoined, NormalisedRowsAreMultipliedByIntegers) {
  const auto [tokens, width, experts, chosen, padded] = GetParam();
  for (const auto& format :
       {*ops::find_weight_format("int4_g64_bf16"), *ops::find_weight_format("int8_g64_bf16")}) {
    if (width % format.row().block != 0) continue;
    const Tensor x = floats({tokens, width}, Dtype::bf16),
                 residual = floats({tokens, width}, Dtype::bf16),
                 scales = floats({width}, Dtype::bf16), sum = room({tokens, width}, Dtype::bf16),
                 norm = room({tokens, width}, Dtype::bf16), y = room({tokens, 272}, Dtype::bf16);
    const ops::Weight weight = ops::make_weight(
        {1, 272, width}, format, [&](Shape shape, Dtype dtype) { return room(shape, dtype); });
    const ops::GroupedMatmul product{.x = norm, .weight = weight, .offsets = {}, .y = y};
    if (!backend_->computes_directly(product)) continue;
    backend_->run(ops::Quantize{.x = floats({272, width}, Dtype::bf16), .weight = weight});
    const auto [joined, apart] =
        both({[&] {
                backend_->run(ops::RmsNorm{
                    .x = x, .residual = residual, .weight = scales, .sum = sum, .y = norm});
              },
              [&] { backend_->run(product); }},
             [&] { return std::vector{floats_of(sum), floats_of(norm), floats_of(y)}; });
    EXPECT_EQ(joined, apart) << format.row().name;
  }
}

TEST_P(CudaJoined, NormalisedTokensAreRouted) {
  const auto [tokens, width, experts, chosen, padded] = GetParam();
  const int64_t rows = tokens * chosen;
  const Tensor x = floats({tokens, width}, Dtype::bf16),
               residual = floats({tokens, width}, Dtype::bf16),
               weight = floats({width}, Dtype::bf16), sum = room({tokens, width}, Dtype::bf16),
               norm = room({tokens, width}, Dtype::bf16),
               router = floats({1, experts, width}, Dtype::bf16),
               logits = room({tokens, experts}, Dtype::f32),
               weights = room({tokens, chosen}, Dtype::f32),
               expert = room({tokens, chosen}, Dtype::i32),
               slot = room({tokens, chosen}, Dtype::i32), source = room({rows}, Dtype::i32),
               offsets = room({experts + 1}, Dtype::i32), xs = room({rows, width}, Dtype::bf16);
  std::vector<int32_t> places(static_cast<size_t>(tokens));
  std::iota(places.begin(), places.end(), 5);
  if (padded) places[0] = ops::kPadding;
  const Tensor positions = integers({tokens}, places);
  const auto [joined, apart] = both(
      {[&] {
         backend_->run(
             ops::RmsNorm{.x = x, .residual = residual, .weight = weight, .sum = sum, .y = norm});
       },
       [&] {
         backend_->run(ops::GroupedMatmul{.x = norm, .weight = router, .offsets = {}, .y = logits});
       },
       [&] {
         backend_->run(ops::Route{.logits = logits,
                                  .positions = positions,
                                  .weights = weights,
                                  .expert = expert,
                                  .slot = slot,
                                  .source = source,
                                  .offsets = offsets});
       },
       [&] {
         backend_->run(ops::GatherRows{.x = norm, .source = source, .y = xs, .divisor = chosen});
       }},
      [&] {
        return std::tuple(std::vector{floats_of(sum), floats_of(norm), floats_of(xs)},
                          std::vector{integers_of(expert), integers_of(slot), integers_of(source),
                                      integers_of(offsets)},
                          floats_of(logits), floats_of(weights));
      });
  EXPECT_EQ(std::get<0>(joined), std::get<0>(apart));
  EXPECT_EQ(std::get<1>(joined), std::get<1>(apart));
  const double scale = std::sqrt(static_cast<double>(width));
  for (size_t i = 0; i < std::get<2>(apart).size(); ++i)
    ASSERT_NEAR(std::get<2>(joined)[i], std::get<2>(apart)[i], 1e-5 * scale) << i;
  for (size_t i = 0; i < std::get<3>(apart).size(); ++i)
    ASSERT_NEAR(std::get<3>(joined)[i], std::get<3>(apart)[i], 1e-4) << i;
}

TEST_P(CudaJoined, RotatedKeysAreAppended) {
  const auto [tokens, width, experts, chosen, padded] = GetParam();
  const ops::Heads heads{.query = 8, .kv = 2, .width = 64};
  const int64_t columns = heads.columns(), page = 16, pages = tokens + 1;
  std::vector<int32_t> places(static_cast<size_t>(tokens)), row_of(places.size()),
      table(static_cast<size_t>(tokens * 2));
  std::iota(row_of.begin(), row_of.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    places[static_cast<size_t>(t)] = static_cast<int32_t>(t % (2 * page));
    table[static_cast<size_t>(2 * t)] = table[static_cast<size_t>(2 * t + 1)] =
        static_cast<int32_t>(t);
  }
  if (padded) places[0] = ops::kPadding;
  const Tensor first = floats({tokens, columns}, Dtype::bf16),
               qkv = room({tokens, columns}, Dtype::bf16), positions = integers({tokens}, places),
               rows = integers({tokens}, row_of),
               rotations = floats({2 * page, heads.width}, Dtype::f32);
  for (const auto type : {ops::CacheType::bf16, ops::CacheType::f16, ops::CacheType::f32,
                          ops::CacheType::int8, ops::CacheType::fp8}) {
    const Shape shape{pages, page, heads.kv, ops::cached_width(type, heads.width)};
    const Tensor keys = room(shape, stored_dtype(type)), values = room(shape, stored_dtype(type));
    const ops::KvView cache{
        .keys = keys, .values = values, .table = integers({tokens, 2}, table), .type = type};
    std::vector<uint8_t> bytes(static_cast<size_t>(keys.bytes()));
    const Tensor on_host(bytes.data(), shape, keys.dtype());
    const auto bytes_of = [&](const Tensor& of) {
      backend_->download(of, on_host);
      return bytes;
    };
    const auto [joined, apart] = both(
        {[&] {
           std::ranges::fill(bytes, uint8_t{0});
           backend_->upload(on_host, keys);
           backend_->upload(on_host, values);
           backend_->run(ops::Convert{.x = first, .y = qkv});
         },
         [&] {
           backend_->run(
               ops::Rope{.qkv = qkv, .positions = positions, .table = rotations, .heads = heads});
         },
         [&] {
           backend_->run(ops::CacheAppend{
               .qkv = qkv, .positions = positions, .rows = rows, .cache = cache, .heads = heads});
         }},
        [&] { return std::tuple(floats_of(qkv), bytes_of(keys), bytes_of(values)); });
    EXPECT_EQ(joined, apart) << to_string(type);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaJoined,
                         testing::Values(Joined{1, 4096, 8, 2, false}, Joined{1, 4096, 8, 2, true},
                                         Joined{1, 1024, 16, 4, false},
                                         Joined{1, 8192, 32, 8, false}, Joined{1, 64, 5, 3, false},
                                         Joined{7, 4096, 8, 2, true}, Joined{64, 1032, 3, 1, false},
                                         Joined{65, 4096, 8, 2, false}));

// What waits to be joined is computed before anything else sees the device.
class CudaWaiting : public CudaJoined {};

TEST_P(CudaWaiting, IsLaunchedBeforeReplaysFencesAndCopies) {
  const auto [tokens, width, experts, chosen, padded] = GetParam();
  const Tensor x = floats({tokens, width}, Dtype::bf16), weight = floats({width}, Dtype::bf16),
               y = room({tokens, width}, Dtype::bf16), copy = room({tokens, width}, Dtype::f32);
  const ops::RmsNorm norm{.x = x, .weight = weight, .y = y};
  backend_->run(norm);
  const std::vector<float> expected = floats_of(y);
  const auto clear = [&] {
    backend_->run(ops::Fill{.x = y});
    backend_->synchronize();
  };
  const auto program = backend_->record([&] { backend_->run(ops::Convert{.x = y, .y = copy}); });
  clear();
  backend_->run(norm);
  program->replay();
  std::vector<float> found(expected.size());
  backend_->download(copy, Tensor(std::span(found)).reshape(copy.shape()));
  EXPECT_EQ(found, expected);

  clear();
  const auto recorded = backend_->record([&] { backend_->run(norm); });
  EXPECT_EQ(floats_of(y), expected);
  clear();
  recorded->replay();
  EXPECT_EQ(floats_of(y), expected);

  clear();
  const auto fence = backend_->make_fence();
  const auto lane = backend_->make_copy_lane();
  std::vector<uint16_t> codes(expected.size()), again(expected.size());
  backend_->download(y, Tensor(codes.data(), y.shape(), Dtype::bf16));
  backend_->run(norm);
  fence->set();
  lane->to_host(y.data(), again.data(), y.bytes(), *fence);
  backend_->download(y, Tensor(codes.data(), y.shape(), Dtype::bf16));
  EXPECT_EQ(again, codes);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaWaiting, testing::Values(Joined{2, 256, 8, 2, false}));

// Attention to one token reads what is older before the kernels in front of it have ended.
class CudaSteps : public CudaJoined {};

TEST_P(CudaSteps, AttendsToTheTokenThatWasAppended) {
  const auto [tokens, inputs, experts, chosen, padded] = GetParam();
  const ops::Heads heads{.query = 8, .kv = 2, .width = 128};
  const int64_t columns = heads.columns(), page = 16;
  const Tensor x = floats({tokens, inputs}, Dtype::bf16),
               matrix = floats({1, columns, inputs}, Dtype::bf16), rows = integers({1}, {0}),
               qkv = room({1, columns}, Dtype::bf16),
               out = room({tokens, heads.query * heads.width}, Dtype::bf16);
  struct Case {
    int64_t first, context, window;
    ops::CacheType type;
  };
  // In one block, in a cluster, and divided among blocks.
  for (const auto& [first, context, window, type] :
       {Case{0, 64, 0, ops::CacheType::bf16}, Case{0, 512, 0, ops::CacheType::bf16},
        Case{500, 1024, 0, ops::CacheType::f16}, Case{700, 1024, 100, ops::CacheType::bf16},
        Case{1000, 4096, 0, ops::CacheType::bf16}, Case{300, 512, 0, ops::CacheType::int8},
        Case{300, 8192, 0, ops::CacheType::fp8}}) {
    const int64_t pages = context / page, width = ops::cached_width(type, heads.width);
    const Shape shape{pages, page, heads.kv, width};
    const Tensor keys = room(shape, stored_dtype(type)), values = room(shape, stored_dtype(type)),
                 rotations = floats({context, heads.width}, Dtype::f32),
                 older = floats({context, columns}, Dtype::bf16);
    std::vector<int32_t> table(static_cast<size_t>(pages)), places(static_cast<size_t>(context));
    std::iota(table.rbegin(), table.rend(), 0);
    std::iota(places.begin(), places.end(), 0);
    const Tensor positions = integers({context}, places),
                 zeros = integers({context}, std::vector<int32_t>(static_cast<size_t>(context), 0));
    const ops::KvView cache{
        .keys = keys, .values = values, .table = integers({1, pages}, table), .type = type};
    const auto run_steps = [&](const auto& behind_op) {
      backend_->run(ops::CacheAppend{
          .qkv = older, .positions = positions, .rows = zeros, .cache = cache, .heads = heads});
      for (int64_t t = 0; t < tokens; ++t) {
        const Tensor place = positions.slice(first + t, first + t + 1);
        const auto op = [&](const auto& what) {
          backend_->run(what);
          behind_op();
        };
        op(ops::GroupedMatmul{
            .x = x.slice(t, t + 1), .weight = ops::Weight(matrix), .offsets = {}, .y = qkv});
        op(ops::Rope{.qkv = qkv, .positions = place, .table = rotations, .heads = heads});
        op(ops::CacheAppend{
            .qkv = qkv, .positions = place, .rows = rows, .cache = cache, .heads = heads});
        op(ops::CachedAttention{.qkv = qkv,
                                .positions = place,
                                .rows = rows,
                                .cache = cache,
                                .out = out.slice(t, t + 1),
                                .heads = heads,
                                .decode_rows = 1,
                                .window = window,
                                .scale = 0.1});
      }
      return floats_of(out);
    };
    const auto expected = run_steps([&] { backend_->synchronize(); });
    for (int i = 0; i < 3; ++i)
      ASSERT_EQ(run_steps([] {}), expected) << first << " of " << context << ", window " << window;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaSteps, testing::Values(Joined{40, 512, 8, 2, false}));

}  // namespace
}  // namespace mixtral
