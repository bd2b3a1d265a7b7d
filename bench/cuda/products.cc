#include <numeric>
#include <utility>

#include "bench/cuda/bench.h"
#include "nn/linear.h"
#include "nn/moe.h"

// Products: dense, of grouped rows, of decoding, and of a layer's experts.
namespace mixtral::bench {
namespace {

void products(const Bench& bench, const std::string& name, int64_t rows, int64_t inputs,
              int64_t outputs, const std::vector<int32_t>& offsets, Dtype dtype, Dtype wide_dtype) {
  Operands operands(bench.backend);
  const auto groups = std::max<int64_t>(1, static_cast<int64_t>(offsets.size()) - 1);
  const Tensor at = offsets.empty() ? Tensor() : operands.values({groups + 1}, offsets);
  const Tensor x = operands.floats({rows, inputs}, dtype);
  const Tensor y = operands.floats({rows, outputs}, wide_dtype);
  const Tensor weight = operands.floats({groups, outputs, inputs}, dtype, 0.02);
  bench.run(name, ops::GroupedMatmul{.x = x, .weight = weight, .offsets = at, .y = y});
  bench.run(name, ops::GroupedMatmulInput{.dy = y,
                                          .weight = weight,
                                          .offsets = at,
                                          .dx = x,
                                          .operands = wide_dtype == dtype || outputs <= 16
                                                          ? ops::Operands::exact
                                                          : ops::Operands::bf16});
  ops::GroupedMatmulWeight gradient{
      .dy = y,
      .x = x,
      .offsets = at,
      .dweight = operands.zeros({groups, outputs, inputs}, Dtype::f32),
      .accumulate = false,
      .operands =
          wide_dtype == dtype || outputs <= 16 ? ops::Operands::exact : ops::Operands::bf16};
  bench.run(name, gradient);
  gradient.accumulate = true;
  bench.run(name + " accumulated", gradient);
}

/// Low-rank updates: x Aᵀ, its addition to y by B, and the gradients of both.
void adapters(const Bench& bench, const std::string& name, int64_t rows, int64_t inputs,
              int64_t outputs, int64_t rank) {
  Operands operands(bench.backend);
  const Tensor x = operands.floats({rows, inputs}, Dtype::bf16);
  const Tensor y = operands.floats({rows, outputs}, Dtype::bf16);
  const Tensor narrow = operands.floats({rows, rank}, Dtype::bf16);
  const Tensor a = operands.floats({1, rank, inputs}, Dtype::bf16, 0.02);
  const Tensor b = operands.floats({1, outputs, rank}, Dtype::bf16, 0.02);
  bench.run(name + " a", ops::GroupedMatmul{.x = x, .weight = a, .offsets = {}, .y = narrow});
  bench.run(
      name + " b added",
      ops::GroupedMatmul{
          .x = narrow, .weight = b, .offsets = {}, .y = y, .scale = 1e-3, .accumulate = true});
  bench.run(name + " b",
            ops::GroupedMatmulInput{.dy = y, .weight = b, .offsets = {}, .dx = narrow});
  bench.run(
      name + " a added",
      ops::GroupedMatmulInput{
          .dy = narrow, .weight = a, .offsets = {}, .dx = x, .scale = 1e-3, .accumulate = true});
  bench.run(name + " b",
            ops::GroupedMatmulWeight{.dy = y,
                                     .x = narrow,
                                     .offsets = {},
                                     .dweight = operands.zeros({1, outputs, rank}, Dtype::f32)});
  bench.run(name + " a",
            ops::GroupedMatmulWeight{.dy = narrow,
                                     .x = x,
                                     .offsets = {},
                                     .dweight = operands.zeros({1, rank, inputs}, Dtype::f32)});
}

}  // namespace

void dense(const Bench& bench) {
  adapters(bench, "adapter 8x7b q", 8192, 4096, 4096, 16);
  adapters(bench, "adapter 8x7b q, 4,096 rows", 4096, 4096, 4096, 16);
  adapters(bench, "adapter 8x7b k", 8192, 4096, 1024, 16);
  adapters(bench, "adapter rank 64", 8192, 4096, 4096, 64);
  products(bench, "out 8x7b bf16", kTokens, 4096, 4096, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "out seed bf16", kTokens, 1024, 1024, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "qkv 8x7b bf16", kTokens, 4096, 6144, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "qkv seed bf16", kTokens, 1024, 2048, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "vocabulary seed bf16/f32", 2048, 1024, 32000, {}, Dtype::bf16, Dtype::f32);
  products(bench, "vocabulary seed bf16", 2048, 1024, 32000, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "vocabulary 8x7b bf16", 2048, 4096, 32000, {}, Dtype::bf16, Dtype::bf16);
  products(bench, "router 8x7b bf16/f32", kTokens, 4096, 8, {}, Dtype::bf16, Dtype::f32);
  products(bench, "router seed bf16/f32", kTokens, 1024, 8, {}, Dtype::bf16, Dtype::f32);
  products(bench, "qkv seed f32", 4096, 1024, 2048, {}, Dtype::f32, Dtype::f32);
}

void grouped(const Bench& bench) {
  const auto even = even_offsets(kTokens, 8), zipf = zipf_offsets(kTokens, 8);
  products(bench, "8x7b up even", kTokens, 4096, 14336, even, Dtype::bf16, Dtype::bf16);
  products(bench, "8x7b up zipf", kTokens, 4096, 14336, zipf, Dtype::bf16, Dtype::bf16);
  products(bench, "8x7b down even", kTokens, 14336, 4096, even, Dtype::bf16, Dtype::bf16);
  products(bench, "8x7b down zipf", kTokens, 14336, 4096, zipf, Dtype::bf16, Dtype::bf16);
  products(bench, "seed up even", kTokens, 1024, 4096, even, Dtype::bf16, Dtype::bf16);
  products(bench, "seed up zipf", kTokens, 1024, 4096, zipf, Dtype::bf16, Dtype::bf16);
  products(bench, "seed down even", kTokens, 4096, 1024, even, Dtype::bf16, Dtype::bf16);
  products(bench, "seed down zipf", kTokens, 4096, 1024, zipf, Dtype::bf16, Dtype::bf16);
  products(bench, "seed gate_up even", 2 * kTokens, 1024, 8192, even_offsets(2 * kTokens, 8),
           Dtype::bf16, Dtype::bf16);
  products(bench, "seed up f32", 4096, 1024, 4096, even_offsets(4096, 8), Dtype::f32, Dtype::f32);
}

/// Products of few rows, which reading the weights bounds. Each run takes other weights than the
/// one before, so that none are in a cache.
void decoding(const Bench& bench) {
  for (const int64_t tokens : {1, 2, 8, 32}) {
    Operands operands(bench.backend);
    const auto dense = [&](const std::string& name, int64_t inputs, int64_t outputs) {
      bench.run(
          fmt::format("decode {} rows {}", tokens, name),
          ops::GroupedMatmul{.x = operands.floats({tokens, inputs}, Dtype::bf16),
                             .weight = operands.floats({1, outputs, inputs}, Dtype::bf16, 0.02),
                             .offsets = {},
                             .y = operands.room({tokens, outputs}, Dtype::bf16)});
    };
    dense("qkv 8x7b", 4096, 6144);
    dense("vocabulary 8x7b", 4096, 32000);
    // Each token goes to two neighbouring experts. The traffic is that of the experts touched.
    const int64_t rows = 2 * tokens;
    std::vector<int32_t> counts(8, 0), offsets{0};
    for (int64_t t = 0; t < rows; ++t) ++counts[static_cast<size_t>(t * 5 % 8)];
    for (int32_t count : counts) offsets.push_back(offsets.back() + count);
    const auto touched =
        std::count_if(counts.begin(), counts.end(), [](int32_t c) { return c > 0; });
    for (const auto& [name, inputs, outputs] :
         std::vector<std::tuple<std::string, int64_t, int64_t>>{{"gate_up 8x7b", 4096, 28672},
                                                                {"down 8x7b", 14336, 4096}}) {
      const ops::GroupedMatmul op{
          .x = operands.floats({rows, inputs}, Dtype::bf16),
          .weight = operands.floats({8, outputs, inputs}, Dtype::bf16, 0.02),
          .offsets = operands.values({9}, offsets),
          .y = operands.room({rows, outputs}, Dtype::bf16)};
      ops::Cost cost = ops::cost(op);
      cost.bytes = static_cast<double>(touched * inputs * outputs * 2);
      bench.report(fmt::format("grouped decode {} rows {}", rows, name), cost,
                   bench.seconds([&] { bench.backend.run(op); }));
    }
  }
}

void experts(const Bench& bench) {
  for (const auto& [width, hidden] :
       std::vector<std::pair<int64_t, int64_t>>{{4096, 14336}, {1024, 4096}}) {
    Operands operands(bench.backend);
    const int64_t n = kTokens, k = 2, rows = n * k;
    const std::string name = fmt::format("d{} f{} bf16", width, hidden);
    const ops::Route route{.logits = operands.floats({n, 8}, Dtype::f32),
                           .positions = {},
                           .weights = operands.room({n, k}, Dtype::f32),
                           .expert = operands.room({n, k}, Dtype::i32),
                           .slot = operands.room({n, k}, Dtype::i32),
                           .source = operands.room({rows}, Dtype::i32),
                           .offsets = operands.room({9}, Dtype::i32)};
    bench.run(name, route);
    bench.run(name, ops::RouterStatistics{.logits = route.logits,
                                          .positions = {},
                                          .offsets = route.offsets,
                                          .load = operands.room({8}, Dtype::f32),
                                          .importance = operands.room({8}, Dtype::f32),
                                          .z = operands.room({1}, Dtype::f32),
                                          .entropy = operands.room({1}, Dtype::f32)});
    const Tensor dweights = operands.floats({n, k}, Dtype::f32);
    bench.run(name, ops::RouteBackward{.logits = route.logits,
                                       .weights = route.weights,
                                       .expert = route.expert,
                                       .dweights = dweights,
                                       .dprobability = operands.floats({8}, Dtype::f32),
                                       .dlogits = operands.room({n, 8}, Dtype::f32)});
    const Tensor x = operands.floats({n, width}, Dtype::bf16);
    const Tensor xs = operands.room({rows, width}, Dtype::bf16);
    bench.run(name, ops::GatherRows{.x = x, .source = route.source, .y = xs, .divisor = k});
    bench.run(name, ops::CombineRows{.y = xs, .slot = route.slot, .residual = x, .out = x});
    const Tensor gate_up = operands.floats({rows, 2 * hidden}, Dtype::bf16);
    const Tensor h = operands.room({rows, hidden}, Dtype::bf16);
    bench.run(
        name,
        ops::SwiGlu{.gate_up = gate_up, .weights = route.weights, .source = route.source, .h = h});
    bench.run(name, ops::SwiGluBackward{.gate_up = gate_up,
                                        .weights = route.weights,
                                        .source = route.source,
                                        .dh = h,
                                        .d_gate_up = operands.room({rows, 2 * hidden}, Dtype::bf16),
                                        .dweights = dweights});
  }
}

/// The whole block of 8 experts, top-2, forward and backward with all gradients: the FLOPs are
/// those of its three products, 6 and 12 a row, input and hidden unit.
void moe_block(const Bench& bench) {
  for (const auto& [width, hidden] :
       std::vector<std::pair<int64_t, int64_t>>{{4096, 14336}, {1024, 4096}}) {
    Operands operands(bench.backend);
    const int64_t n = kTokens / 2, k = 2, experts = 8;
    const auto projection = [&](Shape shape, Dtype dtype) {
      nn::Parameter parameter = nn::make_parameter("weight", shape, nn::Role::projection);
      parameter.value = operands.floats(shape, dtype, 0.02);
      parameter.grad = operands.zeros(shape, Dtype::f32);
      return std::make_unique<nn::Linear>(std::move(parameter));
    };
    nn::MixtureOfExperts block;
    auto router = projection({experts, width}, Dtype::bf16);
    router->exact();
    block.router = std::move(router);
    block.gate_up = projection({experts, 2 * hidden, width}, Dtype::bf16);
    block.down = projection({experts, width, hidden}, Dtype::bf16);
    Arena arena(bench.backend);
    Context ctx(bench.backend, arena, Dtype::bf16);
    const Tensor x = operands.floats({n, width}, Dtype::bf16);
    const Tensor out = operands.room(x.shape(), Dtype::bf16);
    const Tensor dx = operands.room(x.shape(), Dtype::bf16);
    nn::MixtureOfExperts::Saved saved = block.allocate_saved(ctx, n);
    const auto forward = [&] { block.forward(ctx, x, {}, x, out, &saved, nullptr); };
    const auto backward = [&] { block.backward(ctx, x, x, {}, saved, {}, dx); };
    forward();
    backward();
    arena.reset();  // joins the memory that the first run took
    saved = block.allocate_saved(ctx, n);
    const double products = static_cast<double>(2 * n * k * width * hidden);
    const auto weights = static_cast<double>(3 * experts * width * hidden);
    const std::string name = fmt::format("moe block d{} f{} ", width, hidden);
    bench.report(name + "forward", {.flops = 3 * products, .bytes = 2 * weights},
                 bench.seconds(forward));
    bench.report(name + "backward", {.flops = 6 * products, .bytes = 10 * weights},
                 bench.seconds(backward));
  }
}

}  // namespace mixtral::bench
