// The CPU backend's products beside oneDNN's (where it was found at configuration) and the
// machine's ceilings, all measured in this process, taking turns.
//
//   matmul_bench [--threads N] [--seconds S] [--rest S] [FILTER]
//
// Runs the cases whose name contains FILTER. Each contender runs S seconds a case in turns; the
// table shows medians, and the best turn in parentheses. oneDNN's threads spin after a call, so
// turns are --rest apart. With bf16 operands it gets them rounded already; the last column adds the
// conversion, which the op includes. Set OMP_NUM_THREADS to N as well.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "base/threads.h"
#include "cpu/backend.h"
#ifdef MIXTRAL_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
#endif
#ifdef __x86_64__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace mixtral {
namespace {

struct Options {
  int threads = 0;
  double seconds = 0.2;
  double rest = 0.01;
  std::string filter;
};

enum class Kind { forward, input, weight };

struct Case {
  std::string name;
  std::vector<int32_t> rows;  // per group
  int64_t outputs, inputs;
  bool decode = false;  // forward only, measured in bytes of weights
  Dtype weight = Dtype::f32;
};

std::vector<Case> cases() {
  const std::vector<int32_t> zipf = {753, 377, 251, 188, 151, 126, 108, 94};
  const auto each = [](int32_t rows) { return std::vector<int32_t>(8, rows); };
  std::vector<int32_t> one_each(8, 0);
  one_each[1] = one_each[6] = 1;
  return {
      {"dense 2048x1024x4096", {2048}, 4096, 1024},
      {"dense 1024x512x1536", {1024}, 1536, 512},
      {"bench experts up 8x256", each(256), 2048, 512},
      {"bench experts down 8x256", each(256), 512, 1024},
      {"bench experts up zipf", zipf, 2048, 512},
      {"bench router", {1024}, 8, 512},
      {"seed experts up 8x32", each(32), 8192, 1024},
      {"seed experts up 8x64", each(64), 8192, 1024},
      {"seed experts up 8x256", each(256), 8192, 1024},
      {"seed experts down 8x32", each(32), 1024, 4096},
      {"seed experts down 8x256", each(256), 1024, 4096},
      {"tiny experts up 8x192", each(192), 320, 128},
      {"tiny experts down 8x192", each(192), 128, 160},
      {"tiny qkv 768", {768}, 256, 128},
      {"tiny router 768", {768}, 8, 128},
      {"decode head f32", {1}, 32000, 1024, true},
      {"decode head bf16", {1}, 32000, 1024, true, Dtype::bf16},
      {"decode head f16", {1}, 32000, 1024, true, Dtype::f16},
      {"decode head bf16 8 rows", {8}, 32000, 1024, true, Dtype::bf16},
      {"decode 2 of 8 experts f32", one_each, 8192, 1024, true},
      {"decode 2 of 8 experts bf16", one_each, 8192, 1024, true, Dtype::bf16},
  };
}

/// Seconds of wall time or, for one thread, of the thread's own time, which a busy machine disturbs
/// less.
double now(bool own_time) {
  timespec t{};
  clock_gettime(own_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Summary {
  double median = 0, best = 0;  // rates
};

/// Something to time, and the work of a call (operations or bytes).
struct Contender {
  std::function<void()> call;
  double work = 0;
};

/// Times several contenders in turns; each turn is a few calls after one that warms up. Rates are
/// in 10^9 a second.
std::vector<Summary> take_turns(const std::vector<Contender>& contenders, const Options& options) {
  const bool own_time = options.threads == 1;
  std::vector<std::vector<double>> rates(contenders.size());
  std::vector<double> spent(contenders.size());
  while (*std::min_element(spent.begin(), spent.end()) < options.seconds) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      std::this_thread::sleep_for(std::chrono::duration<double>(options.rest));
      contenders[i].call();
      const double start = now(own_time);
      double seconds = 0;
      int calls = 0;
      do {
        contenders[i].call();
        ++calls;
        seconds = now(own_time) - start;
      } while (seconds < options.seconds / 16);
      spent[i] += seconds;
      rates[i].push_back(1e-9 * contenders[i].work * calls / seconds);
    }
  }
  std::vector<Summary> result;
  for (auto& r : rates) {
    std::sort(r.begin(), r.end());
    result.push_back({r[r.size() / 2], r.back()});
  }
  return result;
}

#ifdef __x86_64__
constexpr int kChains = 24;
constexpr int kSteps = 20000;

__attribute__((target("avx512f"))) double multiply_add_512() {
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_set1_ps(1);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kSteps; ++i)
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sum[j] = _mm512_fmadd_ps(sum[j], a, b);
  double total = 0;
  for (auto& s : sum) total += _mm512_cvtss_f32(s);
  return total;
}
__attribute__((target("avx2,fma"))) double multiply_add_256() {
  __m256 sum[12];
  for (auto& s : sum) s = _mm256_set1_ps(1);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kSteps; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sum[j] = _mm256_fmadd_ps(sum[j], a, b);
  double total = 0;
  for (auto& s : sum) total += _mm256_cvtss_f32(s);
  return total;
}
__attribute__((target("avx512f,avx512bf16"))) double multiply_pairs_512() {
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_set1_ps(1);
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (int i = 0; i < kSteps; ++i)
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sum[j] = _mm512_dpbf16_ps(sum[j], a, a);
  double total = 0;
  for (auto& s : sum) total += _mm512_cvtss_f32(s);
  return total;
}
#endif

volatile double sink;  // keeps the ceilings' loops

/// What the products are measured against: multiply-adds of floats and of bf16 pairs (empty without
/// the instructions), and reading memory.
struct Ceilings {
  Contender floats, pairs, read;
};

Ceilings ceilings(ThreadPool& pool, const Tensor& memory) {
  Ceilings c;
  const auto on_all = [&pool](double (*loop)()) {
    return [&pool, loop] { pool.for_each(pool.size(), [loop](int64_t, int) { sink = loop(); }); };
  };
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f"))
    c.floats = {on_all(multiply_add_512), 2.0 * 16 * kChains * kSteps * pool.size()};
  else
    c.floats = {on_all(multiply_add_256), 2.0 * 8 * 12 * kSteps * pool.size()};
  if (__builtin_cpu_supports("avx512bf16"))
    c.pairs = {on_all(multiply_pairs_512), 4.0 * 16 * kChains * kSteps * pool.size()};
#endif
  std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
  const auto read = [&pool, memory] {
    pool.for_each(64, [&](int64_t i, int) {
      const int64_t part = memory.bytes() / 8 / 64;
      const auto* p = static_cast<const uint64_t*>(memory.data()) + part * i;
      uint64_t sum[8] = {};
      for (int64_t j = 0; j < part; j += 8)
        for (int l = 0; l < 8; ++l) sum[l] += p[j + l];
      sink = static_cast<double>(std::accumulate(sum, sum + 8, uint64_t{0}));
    });
  };
  c.read = {read, static_cast<double>(memory.bytes())};
  return c;
}

/// The tensors of one case.
struct Data {
  Data(const Case& c, Backend& backend) {
    const auto groups = static_cast<int64_t>(c.rows.size());
    offsets.push_back(0);
    for (int32_t r : c.rows) offsets.push_back(offsets.back() + r);
    const int64_t rows = offsets.back();
    x = make(backend, {rows, c.inputs}, Dtype::f32, 1);
    y = make(backend, {rows, c.outputs}, Dtype::f32, 2);
    weight = make(backend, {groups, c.outputs, c.inputs}, c.weight, 3);
  }
  Tensor make(Backend& backend, Shape shape, Dtype dtype, uint64_t stream) {
    buffers.emplace_back(backend, shape.numel() * size_of(dtype));
    const Tensor tensor = buffers.back().tensor(shape, dtype);
    RandomStream random(7, stream);
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const float value = static_cast<float>(random.next() >> 40) * 0x1p-24f - 0.5f;
      if (dtype == Dtype::f32)
        tensor.as<float>()[i] = value;
      else if (dtype == Dtype::bf16)
        tensor.as<bf16>()[i] = bf16(value);
      else
        tensor.as<f16>()[i] = f16(value);
    }
    return tensor;
  }
  Tensor group_offsets() {
    const auto n = static_cast<int64_t>(offsets.size());
    return n > 2 ? Tensor(offsets.data(), {n}, Dtype::i32) : Tensor();
  }
  /// Moves single rows to other groups, so that no cache holds the weights of a decode step.
  void next_groups() {
    const int64_t groups = weight.dim(0);
    if (groups == 1) return;
    turn = (turn + 1) % groups;
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      const int64_t at = (g + turn) % groups;
      row += at == 0 || at == groups / 2;
      offsets[static_cast<size_t>(g + 1)] = static_cast<int32_t>(row);
    }
  }

  std::vector<Buffer> buffers;
  std::vector<int32_t> offsets;
  Tensor x, y, weight;
  int64_t turn = 0;
};

#ifdef MIXTRAL_ONEDNN
/// The same job by oneDNN: a product a group. With `bf16`, `convert` rounds the operands first, as
/// the op does; `run` takes them as they are.
class Onednn {
 public:
  Onednn(const Case& c, Kind kind, bool bf16, Data& data, Backend& backend)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    if (bf16) {
      x_ = round(data.x, backend, kind != Kind::input);
      y_ = round(data.y, backend, kind != Kind::forward);
      weight_ = round(data.weight, backend, kind != Kind::weight);
      convert();
    } else {
      x_ = data.x, y_ = data.y, weight_ = data.weight;
    }
    const int64_t in = c.inputs, out = c.outputs;
    for (int64_t g = 0; g < data.weight.dim(0); ++g) {
      const int64_t row = data.offsets[static_cast<size_t>(g)];
      const int64_t m = data.offsets[static_cast<size_t>(g + 1)] - row;
      if (m == 0) continue;
      const auto x = [&](const Tensor& t) { return t.slice(row, row + m); };
      const Tensor w = weight_[g];
      if (kind == Kind::forward)
        add({m, out, in}, x(x_), {in, 1}, w, {1, in}, x(data.y), false);
      else if (kind == Kind::input)
        add({m, in, out}, x(y_), {out, 1}, w, {in, 1}, x(data.x), false);
      else
        add({out, in, m}, x(y_), {1, out}, x(x_), {in, 1}, data.weight[g], true);
    }
  }
  void convert() {
    for (auto& [reorder, from, to] : reorders_) reorder.execute(stream_, from, to);
    stream_.wait();
  }
  void run() {
    for (auto& [product, arguments] : products_) product.execute(stream_, arguments);
    stream_.wait();
  }

 private:
  using Dims = dnnl::memory::dims;
  using Type = dnnl::memory::data_type;
  struct Sizes {
    int64_t m, n, k;
  };

  dnnl::memory::desc describe(const Tensor& t, const Dims& dims, const Dims& strides) {
    return {dims, t.dtype() == Dtype::f32 ? Type::f32 : Type::bf16, strides};
  }
  dnnl::memory wrap(const Tensor& t, const dnnl::memory::desc& desc) {
    return {desc, engine_, t.data()};
  }
  Tensor round(const Tensor& t, Backend& backend, bool used) {
    if (t.dtype() == Dtype::bf16 || !used) return t;
    buffers_.emplace_back(backend, t.numel() * 2);
    const Tensor rounded = buffers_.back().tensor(t.shape(), Dtype::bf16);
    const dnnl::memory from = wrap(t, describe(t, {t.numel()}, {1}));
    const dnnl::memory to = wrap(rounded, describe(rounded, {t.numel()}, {1}));
    reorders_.emplace_back(dnnl::reorder(from, to), from, to);
    return rounded;
  }
  void add(Sizes s, const Tensor& a, const Dims& a_strides, const Tensor& b, const Dims& b_strides,
           const Tensor& c, bool accumulate) {
    const auto a_desc = describe(a, {s.m, s.k}, a_strides);
    const auto b_desc = describe(b, {s.k, s.n}, b_strides);
    const auto c_desc = describe(c, {s.m, s.n}, {s.n, 1});
    dnnl::primitive_attr attributes;
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1);
      attributes.set_post_ops(sum);
    }
    products_.emplace_back(
        dnnl::matmul({dnnl::matmul::desc(a_desc, b_desc, c_desc), attributes, engine_}),
        std::unordered_map<int, dnnl::memory>{{DNNL_ARG_SRC, wrap(a, a_desc)},
                                              {DNNL_ARG_WEIGHTS, wrap(b, b_desc)},
                                              {DNNL_ARG_DST, wrap(c, c_desc)}});
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::vector<Buffer> buffers_;
  Tensor x_, y_, weight_;
  std::vector<std::tuple<dnnl::reorder, dnnl::memory, dnnl::memory>> reorders_;
  std::vector<std::pair<dnnl::matmul, std::unordered_map<int, dnnl::memory>>> products_;
};
#endif

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        backend_(options.threads),
        pool_(options.threads),
        buffer_(backend_, 256 << 20),
        ceilings_(ceilings(pool_, buffer_.tensor({64 << 20}, Dtype::f32))) {}

  void run() {
    fmt::print("{}; GFLOP/s, or GB/s of weights; median (best turn)\n", backend_.description());
    fmt::print("{:<28} {:<7} {:<5} {:>15} {:>8} {:>6} {:>15} {:>6} {:>15}\n", "case", "product",
               "type", "own", "ceiling", "share", "oneDNN", "ratio", "+ conversion");
    for (const Case& c : cases()) {
      if (c.name.find(options_.filter) == std::string::npos) continue;
      for (const bool bf16 : {false, true}) {
        if (c.decode && bf16 != (c.weight == Dtype::bf16)) continue;
        for (const Kind kind : {Kind::forward, Kind::input, Kind::weight})
          if (!c.decode || kind == Kind::forward) run(c, kind, bf16);
      }
    }
  }

 private:
  void run(const Case& c, Kind kind, bool bf16) {
    Data data(c, backend_);
    const bool round = bf16 && !c.decode;
    const auto operands = round ? ops::Operands::bf16 : ops::Operands::exact;
    const auto own = [&] {
      if (c.decode) data.next_groups();
      const Tensor offsets = data.group_offsets();
      if (kind == Kind::forward)
        backend_.run(ops::GroupedMatmul{.x = data.x,
                                        .weight = data.weight,
                                        .offsets = offsets,
                                        .y = data.y,
                                        .operands = operands});
      else if (kind == Kind::input)
        backend_.run(ops::GroupedMatmulInput{.dy = data.y,
                                             .weight = data.weight,
                                             .offsets = offsets,
                                             .dx = data.x,
                                             .operands = operands});
      else
        backend_.run(ops::GroupedMatmulWeight{.dy = data.y,
                                              .x = data.x,
                                              .offsets = offsets,
                                              .dweight = data.weight,
                                              .scale = 1e-3,
                                              .operands = operands});
    };
    const double elements = static_cast<double>(c.outputs * c.inputs);
    const double work =
        c.decode ? elements * static_cast<double>((c.rows.size() > 1 ? 2 : 1) * size_of(c.weight))
                 : 2 * elements * static_cast<double>(data.x.dim(0));

    std::vector<Contender> contenders = {{own, work}};
    contenders.push_back(c.decode                        ? ceilings_.read
                         : round && ceilings_.pairs.call ? ceilings_.pairs
                                                         : ceilings_.floats);
#ifdef MIXTRAL_ONEDNN
    std::unique_ptr<Onednn> peer;
    if (c.weight != Dtype::f16) {
      peer = std::make_unique<Onednn>(c, kind, bf16, data, backend_);
      contenders.push_back({[&] { peer->run(); }, work});
      if (round)
        contenders.push_back({[&] {
                                peer->convert();
                                peer->run();
                              },
                              work});
    }
#endif
    const std::vector<Summary> rates = take_turns(contenders, options_);
    const auto show = [&](size_t i) {
      return i < rates.size() ? fmt::format("{:.1f} ({:.1f})", rates[i].median, rates[i].best)
                              : std::string("-");
    };
    const char* names[] = {"y", "dx", "dW"};
    fmt::print("{:<28} {:<7} {:<5} {:>15} {:>8.1f} {:>5.1f}% {:>15} {:>6} {:>15}\n", c.name,
               names[static_cast<int>(kind)], bf16 ? "bf16" : to_string(c.weight), show(0),
               rates[1].median, 100 * rates[0].median / rates[1].median, show(2),
               rates.size() > 2 ? fmt::format("{:.2f}", rates[0].median / rates[2].median) : "-",
               show(3));
    std::fflush(stdout);
  }

  Options options_;
  cpu::CpuBackend backend_;
  ThreadPool pool_;
  Buffer buffer_;
  Ceilings ceilings_;
};

}  // namespace
}  // namespace mixtral

int main(int argc, char** argv) {
  mixtral::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const bool more = i + 1 < argc;
    if (flag == "--threads" && more)
      options.threads = std::stoi(argv[++i]);
    else if (flag == "--seconds" && more)
      options.seconds = std::stod(argv[++i]);
    else if (flag == "--rest" && more)
      options.rest = std::stod(argv[++i]);
    else
      options.filter = flag;
  }
  mixtral::Bench(options).run();
}
