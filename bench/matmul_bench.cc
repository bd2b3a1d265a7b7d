// The CPU backend's products beside oneDNN's (where it was found at configuration) and the
// machine's ceilings, all measured in this process, taking turns.
//
//   matmul_bench [--threads N] [--seconds S] [--rest S] [FILTER]
//
// Runs the cases whose name contains FILTER. Each contender runs S seconds a case in turns; the
// table shows medians, and the best turn in parentheses. oneDNN's threads spin after a call, so
// turns are --rest apart.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
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

/// Times several contenders in turns; each turn is a few calls after one that warms up.
std::vector<Summary> take_turns(const std::vector<std::function<void()>>& contenders, double work,
                                const Options& options) {
  std::vector<std::vector<double>> rates(contenders.size());
  std::vector<double> spent(contenders.size());
  while (*std::min_element(spent.begin(), spent.end()) < options.seconds) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      std::this_thread::sleep_for(std::chrono::duration<double>(options.rest));
      contenders[i]();
      const double turn = now(options.threads == 1);
      int calls = 0;
      do {
        contenders[i]();
        ++calls;
      } while (now(options.threads == 1) - turn < options.seconds / 16);
      const double seconds = now(options.threads == 1) - turn;
      spent[i] += seconds;
      rates[i].push_back(work * calls / seconds);
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

/// What every contender is measured against: multiply-adds of floats and of bf16 pairs (0 without
/// the instructions), and reading memory.
struct Ceilings {
  std::function<void()> floats, pairs, read;
  double float_work = 0, pair_work = 0, read_work = 0;
};

Ceilings ceilings(ThreadPool& pool, const std::vector<float>& memory) {
  Ceilings c;
  const auto on_all = [&pool](double (*loop)()) {
    return [&pool, loop] { pool.for_each(pool.size(), [loop](int64_t, int) { sink = loop(); }); };
  };
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) {
    c.floats = on_all(multiply_add_512);
    c.float_work = 2.0 * 16 * kChains * kSteps * pool.size();
  } else {
    c.floats = on_all(multiply_add_256);
    c.float_work = 2.0 * 8 * 12 * kSteps * pool.size();
  }
  if (__builtin_cpu_supports("avx512bf16")) {
    c.pairs = on_all(multiply_pairs_512);
    c.pair_work = 4.0 * 16 * kChains * kSteps * pool.size();
  }
#endif
  c.read = [&pool, &memory] {
    pool.for_each(64, [&](int64_t i, int) {
      const size_t part = memory.size() / 64;
      const auto* p =
          reinterpret_cast<const uint64_t*>(memory.data() + part * static_cast<size_t>(i));
      uint64_t sum[8] = {};
      for (size_t j = 0; j < part / 2; j += 8)
        for (size_t l = 0; l < 8; ++l) sum[l] += p[j + l];
      sink = static_cast<double>(std::accumulate(sum, sum + 8, uint64_t{0}));
    });
  };
  c.read_work = static_cast<double>(memory.size()) * 4;
  return c;
}

#ifdef MIXTRAL_ONEDNN
/// One group's product in oneDNN.
class OnednnProduct {
 public:
  OnednnProduct(const dnnl::engine& engine, int64_t m, int64_t n, int64_t k, const void* a,
                dnnl::memory::dims a_strides, const void* b, dnnl::memory::dims b_strides, float* c,
                bool accumulate, dnnl::memory::data_type type) {
    const dnnl::memory::desc a_desc({m, k}, type, std::move(a_strides));
    const dnnl::memory::desc b_desc({k, n}, type, std::move(b_strides));
    const dnnl::memory::desc c_desc({m, n}, dnnl::memory::data_type::f32, dnnl::memory::dims{n, 1});
    dnnl::primitive_attr attributes;
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1);
      attributes.set_post_ops(sum);
    }
    primitive_ = dnnl::matmul({dnnl::matmul::desc(a_desc, b_desc, c_desc), attributes, engine});
    const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
      return dnnl::memory(desc, engine, const_cast<void*>(data));
    };
    arguments_ = {{DNNL_ARG_SRC, memory(a_desc, a)},
                  {DNNL_ARG_WEIGHTS, memory(b_desc, b)},
                  {DNNL_ARG_DST, memory(c_desc, c)}};
  }
  void run(dnnl::stream& stream) { primitive_.execute(stream, arguments_); }

 private:
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};
#endif

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), backend_(options.threads), pool_(options.threads), memory_(64 << 20) {
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<float>(i);
    ceilings_ = ceilings(pool_, memory_);
  }

  void run() {
    fmt::print("{}\n", backend_.description());
    fmt::print("{:<28} {:<8} {:<5} {:>16} {:>9} {:>16} {:>8} {:>6}\n", "case", "product", "type",
               "own", "ceiling", "oneDNN", "share", "ratio");
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
  static void fill(std::vector<float>& v, int64_t count, uint64_t stream) {
    RandomStream random(7, stream);
    v.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < v.size(); i += 2) {
      const uint64_t bits = random.next();
      v[i] = unit_float(static_cast<uint32_t>(bits)) - 0.5f;
      if (i + 1 < v.size()) v[i + 1] = unit_float(static_cast<uint32_t>(bits >> 32)) - 0.5f;
    }
  }
  static std::vector<uint16_t> narrow(const std::vector<float>& v, Dtype dtype) {
    std::vector<uint16_t> result(v.size());
    for (size_t i = 0; i < v.size(); ++i)
      result[i] = dtype == Dtype::f16 ? f16(v[i]).bits : bf16(v[i]).bits;
    return result;
  }

  void run(const Case& c, Kind kind, bool bf16) {
    const auto groups = static_cast<int64_t>(c.rows.size());
    std::vector<int32_t> offsets = {0};
    for (int32_t r : c.rows) offsets.push_back(offsets.back() + r);
    const int64_t rows = offsets.back();
    std::vector<float> x, y, w;
    fill(x, rows * c.inputs, 1);
    fill(y, rows * c.outputs, 2);
    fill(w, groups * c.outputs * c.inputs, 3);
    std::vector<uint16_t> small =
        c.weight == Dtype::f32 ? std::vector<uint16_t>() : narrow(w, c.weight);
    void* weight_data = c.weight == Dtype::f32 ? static_cast<void*>(w.data()) : small.data();
    const Tensor tx(x.data(), {rows, c.inputs}, Dtype::f32),
        ty(y.data(), {rows, c.outputs}, Dtype::f32);
    const Tensor tw(weight_data, {groups, c.outputs, c.inputs}, c.weight);
    const Tensor to = groups > 1 ? Tensor(offsets.data(), {groups + 1}, Dtype::i32) : Tensor();
    const auto operands = bf16 && !c.decode ? ops::Operands::bf16 : ops::Operands::exact;
    int turn = 0;
    const auto own = [&] {
      if (c.decode && groups > 1) {  // other experts each time, so that no cache holds them
        turn = (turn + 1) % static_cast<int>(groups);
        for (int64_t g = 0, row = 0; g < groups; ++g) {
          const int64_t at = (g + turn) % groups;
          row += at == 0 || at == groups / 2;
          offsets[static_cast<size_t>(g + 1)] = static_cast<int32_t>(row);
        }
      }
      if (kind == Kind::forward)
        backend_.run(ops::GroupedMatmul{
            .x = tx, .weight = tw, .offsets = to, .y = ty, .operands = operands});
      else if (kind == Kind::input)
        backend_.run(ops::GroupedMatmulInput{
            .dy = ty, .weight = tw, .offsets = to, .dx = tx, .operands = operands});
      else
        backend_.run(ops::GroupedMatmulWeight{
            .dy = ty, .x = tx, .offsets = to, .dweight = tw, .scale = 1e-3, .operands = operands});
    };
    const double flops = 2.0 * static_cast<double>(rows * c.outputs * c.inputs);
    const double bytes =
        static_cast<double>((groups > 1 ? 2 : 1) * c.outputs * c.inputs * size_of(c.weight));
    const double work = c.decode ? bytes : flops;

    std::vector<std::function<void()>> contenders = {own};
    std::vector<double> works = {work};
    const bool pairs = bf16 && !c.decode && ceilings_.pairs;
    contenders.push_back(c.decode ? ceilings_.read : pairs ? ceilings_.pairs : ceilings_.floats);
    works.push_back(c.decode ? ceilings_.read_work
                    : pairs  ? ceilings_.pair_work
                             : ceilings_.float_work);
#ifdef MIXTRAL_ONEDNN
    dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    std::vector<OnednnProduct> products;
    // With bf16, oneDNN is given operands that are bf16 already.
    const bool half = bf16;
    std::vector<uint16_t> hx, hy, hw;
    if (half) hx = narrow(x, Dtype::bf16), hy = narrow(y, Dtype::bf16), hw = narrow(w, Dtype::bf16);
    if (c.weight != Dtype::f16) {
      const auto type = half ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
      const auto at = [&](const std::vector<float>& full, const std::vector<uint16_t>& halves,
                          int64_t i) {
        return half ? static_cast<const void*>(halves.data() + i) : full.data() + i;
      };
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t row = offsets[static_cast<size_t>(g)],
                      m = offsets[static_cast<size_t>(g + 1)] - row;
        if (m == 0) continue;
        const int64_t wi = g * c.outputs * c.inputs;
        const void *px = at(x, hx, row * c.inputs), *py = at(y, hy, row * c.outputs),
                   *pw = at(w, hw, wi);
        using Dims = dnnl::memory::dims;
        if (kind == Kind::forward)
          products.emplace_back(engine, m, c.outputs, c.inputs, px, Dims{c.inputs, 1}, pw,
                                Dims{1, c.inputs}, y.data() + row * c.outputs, false, type);
        else if (kind == Kind::input)
          products.emplace_back(engine, m, c.inputs, c.outputs, py, Dims{c.outputs, 1}, pw,
                                Dims{c.inputs, 1}, x.data() + row * c.inputs, false, type);
        else
          products.emplace_back(engine, c.outputs, c.inputs, m, py, Dims{1, c.outputs}, px,
                                Dims{c.inputs, 1}, w.data() + wi, true, type);
      }
      contenders.emplace_back([&] {
        for (auto& p : products) p.run(stream);
        stream.wait();
      });
      works.push_back(work);
    }
#endif
    std::vector<Summary> rates = take_turns(contenders, 1, options_);
    for (size_t i = 0; i < rates.size(); ++i) {
      rates[i].median *= works[i] * 1e-9;
      rates[i].best *= works[i] * 1e-9;
    }
    const char* names[] = {"y", "dx", "dW"};
    std::string peer = "-", ratio = "-";
    if (rates.size() > 2) {
      peer = fmt::format("{:.1f} ({:.1f})", rates[2].median, rates[2].best);
      ratio = fmt::format("{:.2f}", rates[0].median / rates[2].median);
    }
    fmt::print("{:<28} {:<8} {:<5} {:>16} {:>9.1f} {:>16} {:>7.1f}% {:>6}\n", c.name,
               c.decode ? "y GB/s" : names[static_cast<int>(kind)],
               bf16 ? "bf16" : to_string(c.weight),
               fmt::format("{:.1f} ({:.1f})", rates[0].median, rates[0].best), rates[1].median,
               peer, 100 * rates[0].median / rates[1].median, ratio);
    std::fflush(stdout);
  }

  Options options_;
  cpu::CpuBackend backend_;
  ThreadPool pool_;
  std::vector<float> memory_;
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
