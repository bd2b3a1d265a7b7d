// The CUDA backend's ops at the shapes of training (8 x 2048 tokens, 8x7B's and `seed`'s widths)
// and decoding, against two ceilings measured in the same run: a copy within the device's memory
// and a large product.
//   cuda_bench [FILTER]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "cuda/backend.h"
#include "nn/linear.h"
#include "nn/moe.h"

namespace mixtral {
namespace {

using Clock = std::chrono::steady_clock;

/// Operands on the device, filled with normal numbers there.
class Operands {
 public:
  explicit Operands(Backend& backend) : backend_(backend) {}

  Tensor floats(Shape shape, Dtype dtype, double deviation = 1) {
    const Tensor tensor = room(shape, dtype);
    backend_.run(
        ops::RandomNormal{.x = tensor, .seed = 1, .stream = stream_++, .deviation = deviation});
    return tensor;
  }
  Tensor zeros(Shape shape, Dtype dtype) {
    const Tensor tensor = room(shape, dtype);
    backend_.run(ops::Fill{.x = tensor});
    return tensor;
  }
  Tensor values(Shape shape, std::vector<int32_t> values) {
    const Tensor tensor = room(shape, Dtype::i32);
    backend_.upload(Tensor(values.data(), shape, Dtype::i32), tensor);
    return tensor;
  }
  Tensor doubles(std::vector<double> values) {
    const Shape shape{static_cast<int64_t>(values.size())};
    const Tensor tensor = room(shape, Dtype::f64);
    backend_.upload(Tensor(values.data(), shape, Dtype::f64), tensor);
    return tensor;
  }
  Tensor room(Shape shape, Dtype dtype) {
    buffers_.emplace_back(backend_, std::max<int64_t>(1, shape.numel() * size_of(dtype)));
    return buffers_.back().tensor(shape, dtype);
  }
  Backend& backend() { return backend_; }

 private:
  Backend& backend_;
  std::vector<Buffer> buffers_;
  uint64_t stream_ = 0;
};

struct Bench {
  std::string_view filter;
  Backend& backend;
  double copy = 0, product = 0;  // ceilings: bytes/s, FLOP/s

  /// The median time of one run among several batches, each long enough to hide the launch.
  double seconds(const std::function<void()>& work) const {
    work();
    backend.synchronize();
    const auto begin = Clock::now();
    work();
    backend.synchronize();
    const double once = std::chrono::duration<double>(Clock::now() - begin).count();
    const int repeats = std::clamp(static_cast<int>(0.004 / once), 1, 100);
    std::vector<double> times;
    for (int batch = 0; batch < 5; ++batch) {
      const auto start = Clock::now();
      for (int i = 0; i < repeats; ++i) work();
      backend.synchronize();
      times.push_back(std::chrono::duration<double>(Clock::now() - start).count() / repeats);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void report(const std::string& name, const ops::Cost& cost, double time) const {
    fmt::print("{:56} {:9.1f} us {:8.0f} GB/s {:4.0f}% {:8.1f} TFLOP/s {:4.0f}%\n", name,
               time * 1e6, cost.bytes / time * 1e-9, copy > 0 ? 100 * cost.bytes / time / copy : 0,
               cost.flops / time * 1e-12, product > 0 ? 100 * cost.flops / time / product : 0);
    std::fflush(stdout);
  }

  template <class Op>
  void run(const std::string& name, const Op& op) const {
    const std::string whole = fmt::format("{} {}", Op::kName, name);
    try {
      check(op);
      report(whole, cost(op), seconds([&] { backend.run(op); }));
    } catch (const Error& error) {
      fmt::print("{:56} {}\n", whole, error.what());
    }
  }

  bool wants(std::string_view family) const {
    return filter.empty() || family.find(filter) != std::string_view::npos;
  }
};

constexpr int64_t kTokens = 8 * 2048;

std::vector<int32_t> even_offsets(int64_t rows, int groups) {
  std::vector<int32_t> offsets;
  for (int g = 0; g <= groups; ++g) offsets.push_back(static_cast<int32_t>(rows * g / groups));
  return offsets;
}

/// Row counts that fall as 1, 1/2, 1/3, ….
std::vector<int32_t> zipf_offsets(int64_t rows, int groups) {
  double total = 0;
  for (int g = 1; g <= groups; ++g) total += 1.0 / g;
  std::vector<int32_t> offsets{0};
  double sum = 0;
  for (int g = 1; g <= groups; ++g) {
    sum += 1.0 / g / total;
    offsets.push_back(static_cast<int32_t>(std::lround(sum * static_cast<double>(rows))));
  }
  return offsets;
}

void ceilings(Bench& bench) {
  Operands operands(bench.backend);
  const int64_t count = int64_t{1} << 29;
  const ops::Convert copy{operands.floats({count}, Dtype::f32), operands.room({count}, Dtype::f32)};
  const double copy_time = bench.seconds([&] { bench.backend.run(copy); });
  bench.copy = cost(copy).bytes / copy_time;
  const int64_t n = 8192;
  const ops::GroupedMatmul product{.x = operands.floats({n, n}, Dtype::bf16),
                                   .weight = operands.floats({1, n, n}, Dtype::bf16),
                                   .offsets = {},
                                   .y = operands.room({n, n}, Dtype::bf16)};
  const double product_time = bench.seconds([&] { bench.backend.run(product); });
  bench.product = cost(product).flops / product_time;
  bench.report("ceiling: copy 2 GiB", cost(copy), copy_time);
  bench.report("ceiling: bf16 product 8192", cost(product), product_time);
}

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

/// Few rows: bound by reading weights, of which several sets take turns so that none is cached.
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

void norms(const Bench& bench) {
  for (const auto& [rows, width, dtype] :
       std::vector<std::tuple<int64_t, int64_t, Dtype>>{{kTokens, 4096, Dtype::bf16},
                                                        {kTokens, 1024, Dtype::bf16},
                                                        {kTokens, 4096, Dtype::f32}}) {
    Operands operands(bench.backend);
    const std::string name = fmt::format("{}x{} {}", rows, width, to_string(dtype));
    const Tensor x = operands.floats({rows, width}, dtype);
    const Tensor residual = operands.floats({rows, width}, dtype);
    const Tensor y = operands.room({rows, width}, dtype);
    const Tensor sum = operands.room({rows, width}, dtype);
    const Tensor rstd = operands.floats({rows}, Dtype::f32);
    const Tensor weight = operands.floats({width}, dtype);
    bench.run(
        name,
        ops::RmsNorm{
            .x = x, .residual = residual, .weight = weight, .sum = sum, .y = y, .rstd = rstd});
    bench.run(name, ops::RmsNormBackward{.dy = x,
                                         .x = residual,
                                         .weight = weight,
                                         .rstd = rstd,
                                         .dx = y,
                                         .dweight = operands.zeros({width}, Dtype::f32),
                                         .accumulate = true});
  }
}

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

void attentions(const Bench& bench) {
  const ops::Heads large{32, 8, 128}, seed{16, 8, 64};
  attention(bench, "8x7b 4x4096 bf16", even_offsets(4 * 4096, 4), large, 0, Dtype::bf16);
  attention(bench, "seed 8x2048 bf16", even_offsets(kTokens, 8), seed, 0, Dtype::bf16);
  attention(bench, "8x7b 16384 window 4096 bf16", {0, 16384}, large, 4096, Dtype::bf16);
  attention(bench, "8x7b packed bf16", {0, 700, 4096, 4100, 6000, 8192}, large, 0, Dtype::bf16);
  attention(bench, "seed 2x2048 f32", even_offsets(4096, 2), seed, 0, Dtype::f32);
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

void vocabulary(const Bench& bench) {
  Operands operands(bench.backend);
  RandomStream random(5);
  std::vector<int32_t> tokens;
  // Few tokens are most of a text: the square of a uniform number is dense near 0.
  for (int64_t i = 0; i < kTokens; ++i)
    tokens.push_back(static_cast<int32_t>(std::pow(random.uniform(), 4) * 32000));
  const Tensor ids = operands.values({kTokens}, tokens);
  const Tensor x = operands.room({kTokens, 4096}, Dtype::bf16);
  bench.run(
      "d4096 bf16",
      ops::Embedding{.table = operands.floats({32000, 4096}, Dtype::bf16), .tokens = ids, .x = x});
  bench.run("d4096 bf16",
            ops::EmbeddingBackward{
                .dx = x, .tokens = ids, .dtable = operands.zeros({32000, 4096}, Dtype::f32)});
  for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor logits = operands.floats({2048, 32000}, dtype);
    bench.run(fmt::format("2048x32000 {}", to_string(dtype)),
              ops::CrossEntropy{.logits = logits,
                                .labels = ids.slice(0, 2048),
                                .loss = operands.room({2048}, Dtype::f32),
                                .scale = operands.floats({1}, Dtype::f32),
                                .dlogits = operands.room({2048, 32000}, dtype)});
  }
  for (int64_t sequences : {1, 64}) {
    std::vector<ops::SamplingSettings> settings(static_cast<size_t>(sequences),
                                                {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f});
    const Tensor packed =
        operands.room({sequences, static_cast<int64_t>(sizeof(ops::SamplingSettings))}, Dtype::u8);
    bench.backend.upload(Tensor(settings.data(), packed.shape(), Dtype::u8), packed);
    bench.run(fmt::format("{}x32000", sequences),
              ops::Sample{.logits = operands.floats({sequences, 32000}, Dtype::f32),
                          .settings = packed,
                          .history = {},
                          .positions = operands.zeros({sequences}, Dtype::i32),
                          .tokens = operands.room({sequences}, Dtype::i32),
                          .log_probability = operands.room({sequences}, Dtype::f32)});
  }
}

void others(const Bench& bench) {
  Operands operands(bench.backend);
  const int64_t n = int64_t{1} << 28;
  const Tensor value = operands.floats({n}, Dtype::f32, 0.02);
  const Tensor grad = operands.floats({n}, Dtype::f32, 0.001);
  const Tensor model = operands.room({n}, Dtype::bf16);
  const Tensor schedule = operands.doubles({1e-4, 0.5, 0.3, 7});
  const Tensor norm = operands.doubles({1});
  bench.run("2^28", ops::SquaredNorm{.x = grad, .sum = norm});
  for (Dtype state : {Dtype::f32, Dtype::bf16}) {
    bench.run(fmt::format("2^28 {} state", to_string(state)),
              ops::AdamW{.value = value,
                         .grad = grad,
                         .m = operands.zeros({n}, state),
                         .v = operands.zeros({n}, state),
                         .model = model,
                         .schedule = schedule,
                         .squared_norm = norm,
                         .weight_decay = 0.1,
                         .clip = 1});
  }
  bench.run("f32 to bf16", ops::Convert{.x = value, .y = model});
  bench.run("f32", ops::AddScaled{.x = grad, .y = value, .scale = 1e-6});
  bench.run(
      "bf16",
      ops::Dropout{
          .x = model, .y = model, .seed = operands.zeros({1}, Dtype::i64), .probability = 0.1});
  bench.run("f32", ops::RandomNormal{.x = value, .deviation = 0.02});
  for (const auto format : {ops::WeightFormat::fp8, ops::WeightFormat::nf4}) {
    const int64_t columns = 4096, rows = n / columns;
    const ops::Weight weight =
        ops::make_weight({1, rows, columns}, format,
                         [&](Shape shape, Dtype dtype) { return operands.zeros(shape, dtype); });
    const Tensor x = value.reshape({rows, columns}), y = model.reshape({rows, columns});
    bench.run(fmt::format("f32 to {}", format.name()), ops::Quantize{.x = x, .weight = weight});
    bench.run(fmt::format("{} to bf16", format.name()), ops::Dequantize{.weight = weight, .y = y});
  }
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < kTokens; ++i) positions.push_back(static_cast<int32_t>(i % 2048));
  const ops::Heads heads{32, 8, 128};
  bench.run("8x7b bf16", ops::Rope{.qkv = operands.floats({kTokens, heads.columns()}, Dtype::bf16),
                                   .positions = operands.values({kTokens}, positions),
                                   .table = operands.floats({2048, 2, 64}, Dtype::f32),
                                   .heads = heads});
}

int run(std::string_view filter) {
  const auto backend = cuda::make_backend(0);
  fmt::print("{}\n", backend->description());
  Bench bench{filter, *backend};
  ceilings(bench);
  const std::vector<std::pair<std::string_view, std::function<void(const Bench&)>>> families{
      {"dense", dense},      {"grouped", grouped},   {"norm", norms},  {"attention", attentions},
      {"cached", cached},    {"decoding", decoding}, {"moe", experts}, {"block", moe_block},
      {"vocab", vocabulary}, {"others", others}};
  for (const auto& [name, family] : families)
    if (bench.wants(name)) family(bench);
  return 0;
}

}  // namespace
}  // namespace mixtral

int main(int count, char** arguments) {
  try {
    return mixtral::run(count > 1 ? arguments[1] : "");
  } catch (const mixtral::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
