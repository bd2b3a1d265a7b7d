// A row's result does not depend on the rows beside it: alone or in a batch, decoded over a cache
// or computed with its whole sequence, it has the same bits. Holds on `ref` and `cpu`.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "backends/registry.h"
#include "ops/context.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Device {
  std::string name;
  int threads = 1;
  Dtype dtype = Dtype::f32;
};

void PrintTo(const Device& device, std::ostream* out) { *out << device.name; }

/// Tensors on a host backend, and ops on them.
class Batch : public testing::TestWithParam<Device> {
 protected:
  Batch()
      : backend_(make_backend(GetParam().name, GetParam().threads)),
        arena_(*backend_),
        random_(test_seed(), 77),
        context_(*backend_, arena_, GetParam().dtype) {
    testing::Test::RecordProperty("seed", std::to_string(test_seed()));
  }

  Dtype dtype() const { return GetParam().dtype; }
  Dtype statistics() const { return ops::statistics_dtype(dtype()); }

  Tensor fill(const Tensor& tensor, const std::vector<double>& values) {
    const auto bytes = from_doubles(values, tensor.dtype());
    CHECK(static_cast<int64_t>(bytes.size()) == tensor.bytes());
    std::memcpy(tensor.data(), bytes.data(), bytes.size());
    return tensor;
  }
  Tensor random(Shape shape, Dtype type, double deviation = 1) {
    std::vector<double> values;
    for (int64_t i = 0; i < shape.numel(); ++i) values.push_back(deviation * random_.normal());
    return fill(arena_.allocate(shape, type), values);
  }
  Tensor random(Shape shape) { return random(shape, dtype()); }
  Tensor indices(const std::vector<int32_t>& values) {
    return fill(arena_.allocate({static_cast<int64_t>(values.size())}, Dtype::i32),
                {values.begin(), values.end()});
  }
  Tensor empty(Shape shape) { return arena_.allocate(shape, dtype()); }
  Tensor empty(Shape shape, Dtype type) { return arena_.allocate(shape, type); }

  static void expect_same(const Tensor& alone, const Tensor& batch, const std::string& what) {
    ASSERT_EQ(alone.bytes(), batch.bytes());
    EXPECT_EQ(std::memcmp(alone.data(), batch.data(), static_cast<size_t>(alone.bytes())), 0)
        << what << " (MIXTRAL_TEST_SEED=" << test_seed() << ")";
  }

  /// `rows(begin, end)` computes those rows of a batch into a new tensor; every row and several
  /// ranges must equal their part of the whole.
  void expect_independent(int64_t count, const std::string& what,
                          const std::function<Tensor(int64_t begin, int64_t end)>& rows) {
    const Tensor whole = rows(0, count);
    for (int64_t size : {1, 2, 3, 5, 8, 13, 16, 31}) {
      for (int64_t begin = 0; begin + size <= count; begin += size)
        expect_same(rows(begin, begin + size), whole.slice(begin, begin + size),
                    fmt::format("{}: rows {} to {} of {}", what, begin, begin + size, count));
      if (testing::Test::HasFailure()) return;
    }
  }

  std::unique_ptr<Backend> backend_;
  Arena arena_;
  RandomStream random_;
  Context context_;
};

/// What a weight's type and the rounding of operands may be beside the activations' type.
struct Mode {
  Dtype weight;
  ops::Operands operands;
};

std::vector<Mode> modes(Dtype activations) {
  if (activations != Dtype::f32) return {{activations, ops::Operands::exact}};
  return {{Dtype::f32, ops::Operands::exact},
          {Dtype::bf16, ops::Operands::exact},
          {Dtype::f16, ops::Operands::exact},
          {Dtype::f32, ops::Operands::bf16},
          {Dtype::bf16, ops::Operands::bf16}};
}

std::string label(const Mode& mode) {
  return fmt::format("{} weight, {} operands", to_string(mode.weight),
                     mode.operands == ops::Operands::exact ? "exact" : "bf16");
}

TEST_P(Batch, GroupedMatmul) {
  const int64_t count = 37;
  for (const Shape& size : {Shape{1, 1}, Shape{48, 33}, Shape{130, 257}, Shape{17, 64}}) {
    for (const Mode& mode : modes(dtype())) {
      ArenaScope scope(arena_);
      const int64_t outputs = size[0], inputs = size[1];
      const Tensor x = random({count, inputs});
      const Tensor weight = random({1, outputs, inputs}, mode.weight, 0.1);
      expect_independent(count, "GroupedMatmul, " + label(mode), [&](int64_t begin, int64_t end) {
        const Tensor y = empty({end - begin, outputs});
        context_.run(ops::GroupedMatmul{.x = x.slice(begin, end),
                                        .weight = weight,
                                        .offsets = {},
                                        .y = y,
                                        .scale = 0.5,
                                        .operands = mode.operands});
        return y;
      });
    }
  }
}

TEST_P(Batch, GroupedMatmulInput) {
  const int64_t count = 37;
  for (const Shape& size : {Shape{1, 1}, Shape{48, 33}, Shape{130, 257}, Shape{17, 64}}) {
    for (const Mode& mode : modes(dtype())) {
      ArenaScope scope(arena_);
      const int64_t outputs = size[0], inputs = size[1];
      const Tensor dy = random({count, outputs});
      const Tensor weight = random({1, outputs, inputs}, mode.weight, 0.1);
      expect_independent(count, "GroupedMatmulInput, " + label(mode),
                         [&](int64_t begin, int64_t end) {
                           const Tensor dx = empty({end - begin, inputs});
                           context_.run(ops::GroupedMatmulInput{.dy = dy.slice(begin, end),
                                                                .weight = weight,
                                                                .offsets = {},
                                                                .dx = dx,
                                                                .operands = mode.operands});
                           return dx;
                         });
    }
  }
}

TEST_P(Batch, GroupedMatmulInGroups) {
  const std::vector<int32_t> counts{9, 0, 1, 40, 3};
  const auto offsets = offsets_of(counts);
  const int64_t count = offsets.back(), groups = 5, inputs = 70, outputs = 50;
  for (const Mode& mode : modes(dtype())) {
    ArenaScope scope(arena_);
    const Tensor x = random({count, inputs});
    const Tensor weight = random({groups, outputs, inputs}, mode.weight, 0.1);
    const Tensor whole = empty({count, outputs});
    context_.run(ops::GroupedMatmul{.x = x,
                                    .weight = weight,
                                    .offsets = indices(offsets),
                                    .y = whole,
                                    .operands = mode.operands});
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t r = offsets[static_cast<size_t>(g)]; r < offsets[static_cast<size_t>(g) + 1];
           ++r) {
        std::vector<int32_t> alone(static_cast<size_t>(groups), 0);
        alone[static_cast<size_t>(g)] = 1;
        const Tensor y = empty({1, outputs});
        context_.run(ops::GroupedMatmul{.x = x.slice(r, r + 1),
                                        .weight = weight,
                                        .offsets = indices(offsets_of(alone)),
                                        .y = y,
                                        .operands = mode.operands});
        expect_same(y, whole.slice(r, r + 1), fmt::format("row {}, {}", r, label(mode)));
      }
    }
  }
}

TEST_P(Batch, RmsNorm) {
  const int64_t count = 35;
  for (int64_t width : {1, 8, 31, 128, 1000}) {
    const Tensor x = random({count, width}), residual = random({count, width});
    const Tensor weight = random({width});
    expect_independent(count, "RmsNorm", [&](int64_t begin, int64_t end) {
      const Tensor sum = empty({end - begin, width}), y = empty({end - begin, width});
      context_.run(ops::RmsNorm{.x = x.slice(begin, end),
                                .residual = residual.slice(begin, end),
                                .weight = weight,
                                .sum = sum,
                                .y = y,
                                .rstd = {}});
      return y;
    });
  }
}

TEST_P(Batch, Rope) {
  const int64_t count = 35;
  for (const ops::Heads& heads :
       {ops::Heads{1, 1, 2}, ops::Heads{4, 2, 16}, ops::Heads{3, 1, 10}}) {
    const Tensor table = empty({64, 2, heads.width / 2}, statistics());
    ops::fill_rope_table(table, 1e4);
    const Tensor qkv = random({count, heads.columns()});
    std::vector<int32_t> at;
    for (int64_t n = 0; n < count; ++n) at.push_back(static_cast<int32_t>(random_.below(64)));
    const Tensor positions = indices(at);
    expect_independent(count, "Rope", [&](int64_t begin, int64_t end) {
      const Tensor y = empty({end - begin, heads.columns()});
      context_.run(ops::Convert{qkv.slice(begin, end), y});
      context_.run(ops::Rope{
          .qkv = y, .positions = positions.slice(begin, end), .table = table, .heads = heads});
      return y;
    });
  }
}

TEST_P(Batch, SwiGlu) {
  const int64_t count = 40, k = 2;
  for (int64_t width : {1, 9, 64, 161}) {
    const Tensor gate_up = random({count, 2 * width});
    std::vector<int32_t> order;
    for (int32_t r = 0; r < count; ++r) order.push_back((r * 7) % static_cast<int32_t>(count));
    const Tensor weights = random({count / k, k}, statistics());
    expect_independent(count, "SwiGlu", [&](int64_t begin, int64_t end) {
      const Tensor h = empty({end - begin, width});
      // The rows alone, with their own weights in their own order.
      std::vector<double> own;
      std::vector<int32_t> source;
      const auto all = to_doubles(weights.data(), weights.dtype(), weights.numel());
      for (int64_t r = begin; r < end; ++r) {
        own.push_back(all[static_cast<size_t>(order[static_cast<size_t>(r)])]);
        source.push_back(static_cast<int32_t>(r - begin));
      }
      context_.run(ops::SwiGlu{.gate_up = gate_up.slice(begin, end),
                               .weights = fill(empty({end - begin, 1}, statistics()), own),
                               .source = indices(source),
                               .h = h});
      return h;
    });
  }
}

TEST_P(Batch, Route) {
  const int64_t count = 35;
  for (const auto& shape : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {8, 2}, {32, 4}}) {
    const int64_t experts = shape.first, k = shape.second;
    const Tensor logits = random({count, experts}, statistics());
    for (const bool chosen : {false, true}) {
      expect_independent(count, "Route", [&](int64_t begin, int64_t end) {
        const int64_t n = end - begin;
        const ops::Route op{.logits = logits.slice(begin, end),
                            .weights = empty({n, k}, statistics()),
                            .expert = empty({n, k}, Dtype::i32),
                            .slot = empty({n, k}, Dtype::i32),
                            .source = empty({n * k}, Dtype::i32),
                            .offsets = empty({experts + 1}, Dtype::i32)};
        context_.run(op);
        return chosen ? op.expert : op.weights;
      });
    }
  }
}

TEST_P(Batch, CombineRows) {
  const int64_t count = 35, k = 3;
  for (int64_t width : {1, 9, 64, 161}) {
    const Tensor y = random({count * k, width}), residual = random({count, width});
    expect_independent(count, "CombineRows", [&](int64_t begin, int64_t end) {
      std::vector<int32_t> slot;
      for (int64_t a = 0; a < (end - begin) * k; ++a) slot.push_back(static_cast<int32_t>(a));
      const Tensor out = empty({end - begin, width});
      context_.run(ops::CombineRows{.y = y.slice(begin * k, end * k),
                                    .slot = indices(slot).reshape({end - begin, k}),
                                    .residual = residual.slice(begin, end),
                                    .out = out});
      return out;
    });
  }
}

struct Layout {
  ops::Heads heads;
  int64_t window, page_tokens;
};

/// Attention of one sequence, and the same tokens over a cache: in pieces of `piece` tokens, behind
/// padding and a token of another sequence, whose pages lie between.
TEST_P(Batch, CachedAttentionEqualsAttention) {
  const int64_t count = 83;
  for (const Layout& layout :
       {Layout{{1, 1, 2}, 0, 1}, Layout{{4, 2, 16}, 0, 16}, Layout{{4, 2, 16}, 0, 64},
        Layout{{4, 1, 64}, 7, 16}, Layout{{2, 2, 6}, 1, 1}, Layout{{21, 3, 20}, 0, 16},
        Layout{{10, 1, 48}, 70, 16}, Layout{{40, 20, 4}, 0, 16}}) {
    const ops::Heads& heads = layout.heads;
    const int64_t width = int64_t{heads.query} * heads.width;
    const double scale = 1 / std::sqrt(static_cast<double>(heads.width));
    const Tensor qkv = random({count, heads.columns()}), whole = empty({count, width});
    context_.run(ops::Attention{.qkv = qkv,
                                .sequence_starts = indices({0, static_cast<int32_t>(count)}),
                                .out = whole,
                                .log_sum = {},
                                .heads = heads,
                                .window = layout.window,
                                .scale = scale,
                                .longest = count});
    const int64_t pages = (count + layout.page_tokens - 1) / layout.page_tokens;
    for (int64_t piece : {1, 5, 16}) {
      const Shape shape{2 * pages, layout.page_tokens, heads.kv, heads.width};
      const Tensor keys = random(shape), values = random(shape);
      for (int64_t begin = 0; begin < count; begin += piece) {
        const int64_t end = std::min(begin + piece, count);
        // Sequence 1 is this one, its pages from the last to the first; sequence 0 has the others.
        // Pages behind the window are missing.
        const int64_t seen =
            layout.window > 0 ? std::max<int64_t>(0, begin - layout.window + 1) : 0;
        std::vector<int32_t> table;
        for (int64_t i = 0; i < pages; ++i) table.push_back(static_cast<int32_t>(2 * i));
        for (int64_t i = 0; i < pages; ++i)
          table.push_back(i < seen / layout.page_tokens
                              ? ops::kNoPage
                              : static_cast<int32_t>(2 * (pages - i) - 1));
        std::vector<int32_t> at{0, ops::kPadding}, rows{0, 7};
        for (int64_t p = begin; p < end; ++p) {
          at.push_back(static_cast<int32_t>(p));
          rows.push_back(1);
        }
        const auto tokens = static_cast<int64_t>(at.size());
        const Tensor batch = random({tokens, heads.columns()});
        context_.run(ops::Convert{qkv.slice(begin, end), batch.slice(2, tokens)});
        const ops::KvView cache{.keys = keys,
                                .values = values,
                                .table = indices(table).reshape({2, pages}),
                                .type = ops::cache_type_of(keys.dtype())};
        context_.run(ops::CacheAppend{.qkv = batch,
                                      .positions = indices(at),
                                      .rows = indices(rows),
                                      .cache = cache,
                                      .heads = heads});
        const Tensor out = empty({tokens, width});
        context_.run(ops::CachedAttention{.qkv = batch,
                                          .positions = indices(at),
                                          .rows = indices(rows),
                                          .cache = cache,
                                          .out = out,
                                          .heads = heads,
                                          .decode_rows = 2,
                                          .window = layout.window,
                                          .scale = scale});
        expect_same(out.slice(2, tokens), whole.slice(begin, end),
                    fmt::format("positions {} to {}, head width {}, window {}", begin, end,
                                heads.width, layout.window));
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

/// The last token of a long sequence, whose keys several threads divide among them.
TEST_P(Batch, CachedAttentionOfOneTokenOverManyKeysEqualsAttention) {
  const int64_t count = GetParam().name == "ref" ? 70 : 1500, size = 16;
  const int64_t pages = (count + size - 1) / size;
  for (const Layout& layout :
       {Layout{{4, 1, 24}, 0, size}, Layout{{1, 1, 2}, 0, size}, Layout{{9, 1, 64}, 601, size}}) {
    const ops::Heads& heads = layout.heads;
    const int64_t width = int64_t{heads.query} * heads.width;
    const Tensor qkv = random({count, heads.columns()}), whole = empty({count, width});
    context_.run(ops::Attention{.qkv = qkv,
                                .sequence_starts = indices({0, static_cast<int32_t>(count)}),
                                .out = whole,
                                .log_sum = {},
                                .heads = heads,
                                .window = layout.window,
                                .scale = 0.3,
                                .longest = count});
    const Shape shape{pages, size, heads.kv, heads.width};
    std::vector<int32_t> at, table;
    for (int64_t p = 0; p < count; ++p) at.push_back(static_cast<int32_t>(p));
    for (int64_t i = 0; i < pages; ++i) table.push_back(static_cast<int32_t>(pages - 1 - i));
    const Tensor keys = random(shape), values = random(shape);
    const ops::KvView cache{.keys = keys,
                            .values = values,
                            .table = indices(table).reshape({1, pages}),
                            .type = ops::cache_type_of(keys.dtype())};
    context_.run(
        ops::CacheAppend{.qkv = qkv,
                         .positions = indices(at),
                         .rows = indices(std::vector<int32_t>(static_cast<size_t>(count), 0)),
                         .cache = cache,
                         .heads = heads});
    const Tensor out = empty({1, width});
    context_.run(ops::CachedAttention{.qkv = qkv.slice(count - 1, count),
                                      .positions = indices({static_cast<int32_t>(count - 1)}),
                                      .rows = indices({0}),
                                      .cache = cache,
                                      .out = out,
                                      .heads = heads,
                                      .decode_rows = 1,
                                      .window = layout.window,
                                      .scale = 0.3});
    expect_same(out, whole.slice(count - 1, count),
                fmt::format("head width {}, window {}", heads.width, layout.window));
  }
}

TEST_P(Batch, AttentionOfASequenceAmongOthers) {
  const std::vector<int32_t> lengths{1, 40, 7, 1, 66, 3};
  const auto starts = offsets_of(lengths);
  for (const ops::Heads& heads : {ops::Heads{4, 2, 16}, ops::Heads{2, 1, 64}}) {
    for (int64_t window : {0, 5}) {
      const int64_t width = int64_t{heads.query} * heads.width;
      const auto attend = [&](const Tensor& qkv, const std::vector<int32_t>& bounds) {
        const Tensor out = empty({qkv.dim(0), width});
        context_.run(ops::Attention{.qkv = qkv,
                                    .sequence_starts = indices(bounds),
                                    .out = out,
                                    .log_sum = {},
                                    .heads = heads,
                                    .window = window,
                                    .scale = 0.2,
                                    .longest = qkv.dim(0)});
        return out;
      };
      const Tensor qkv = random({starts.back(), heads.columns()});
      const Tensor whole = attend(qkv, starts);
      for (size_t s = 0; s < lengths.size(); ++s)
        expect_same(attend(qkv.slice(starts[s], starts[s + 1]), {0, lengths[s]}),
                    whole.slice(starts[s], starts[s + 1]), fmt::format("sequence {}", s));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Batch,
                         testing::Values(Device{"ref", 1, Dtype::f64},
                                         Device{"ref", 1, Dtype::bf16},
                                         Device{"cpu", 1, Dtype::f32},
                                         Device{"cpu", 2, Dtype::f32}),
                         [](const auto& each) {
                           return fmt::format("{}{}_{}", each.param.name, each.param.threads,
                                              to_string(each.param.dtype));
                         });

}  // namespace
}  // namespace mixtral::test
