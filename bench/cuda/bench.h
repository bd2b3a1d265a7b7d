#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/backend.h"

/// What the families of cuda_bench share: operands on the device, and how an op is timed.
namespace mixtral::bench {

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
    const auto begin = std::chrono::steady_clock::now();
    work();
    backend.synchronize();
    const double once =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const int repeats = std::clamp(static_cast<int>(0.004 / once), 1, 100);
    std::vector<double> times;
    for (int batch = 0; batch < 5; ++batch) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < repeats; ++i) work();
      backend.synchronize();
      times.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
          repeats);
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

/// Rows of groups of the same size, and of sizes that fall as 1, 1/2, 1/3, ….
std::vector<int32_t> even_offsets(int64_t rows, int groups);
std::vector<int32_t> zipf_offsets(int64_t rows, int groups);

// Families of ops, each with the shapes of its uses.
void dense(const Bench& bench);
void grouped(const Bench& bench);
void decoding(const Bench& bench);
void experts(const Bench& bench);
void moe_block(const Bench& bench);
void attentions(const Bench& bench);
void cached(const Bench& bench);
void norms(const Bench& bench);
void vocabulary(const Bench& bench);
void others(const Bench& bench);

}  // namespace mixtral::bench
