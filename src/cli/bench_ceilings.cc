#include "cli/bench_ceilings.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cpu/peaks.h"

namespace mixtral {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 9;
constexpr double kMostShare = 1.05;

double best_seconds(Backend& backend, const std::function<void()>& work) {
  return std::ranges::min(time_runs(backend, kRuns, work));
}

/// Seconds of a product of two square matrices.
double product_seconds(Backend& backend, const Precision& precision, int64_t side) {
  const Dtype type = precision.compute;
  const int64_t bytes = side * side * size_of(type);
  const Buffer x(backend, bytes), weight(backend, bytes), y(backend, bytes);
  uint64_t stream = 0;
  const auto normal = [&](const Buffer& buffer, Shape shape) {
    const Tensor t = buffer.tensor(shape, type);
    backend.run(ops::RandomNormal{.x = t, .seed = 1, .stream = stream++, .deviation = 1});
    return t;
  };
  const ops::GroupedMatmul product{.x = normal(x, {side, side}),
                                   .weight = normal(weight, {1, side, side}),
                                   .offsets = {},
                                   .y = y.tensor({side, side}, type),
                                   .operands = precision.operands};
  return best_seconds(backend, [&] { backend.run(product); });
}

}  // namespace

void Ceilings::raise(const Ceilings& other) {
  for (double Ceilings::* const each : {&Ceilings::read, &Ceilings::copy, &Ceilings::product,
                                        &Ceilings::f32, &Ceilings::bf16, &Ceilings::int8})
    this->*each = std::max(this->*each, other.*each);
}

Ceilings measure_ceilings(Backend& backend, const Precision& precision, int threads) {
  const bool gpu = backend.kind() == DeviceKind::gpu;
  Ceilings ceilings;
  ceilings.firm =
      backend.kind() != DeviceKind::reference && precision.operands != ops::Operands::fp8;
  if (backend.kind() == DeviceKind::cpu) {
    const cpu::Peaks peaks = cpu::measure_peaks(threads);
    ceilings.f32 = peaks.f32;
    ceilings.bf16 = peaks.bf16;
    ceilings.int8 = peaks.int8;
    const bool bf16 =
        precision.operands == ops::Operands::bf16 ||
        (precision.operands == ops::Operands::as_weight && precision.weights == Dtype::bf16);
    ceilings.product = bf16 ? peaks.bf16 : peaks.f32;
  } else {
    const int64_t side = gpu ? 8192 : 128;
    ceilings.product =
        2 * std::pow(static_cast<double>(side), 3) / product_seconds(backend, precision, side);
  }
  const int64_t count = gpu ? int64_t{1} << 29 : int64_t{1} << 25;
  const Buffer from(backend, count * 4), to(backend, count * 4), sum(backend, 8);
  const Tensor x = from.tensor({count}, Dtype::f32);
  backend.run(ops::RandomNormal{.x = x, .seed = 1, .stream = 0, .deviation = 1});
  const ops::Convert copy{x, to.tensor({count}, Dtype::f32)};
  const ops::SquaredNorm read{.x = x, .sum = sum.tensor({1}, Dtype::f64)};
  const auto bytes = static_cast<double>(count) * 4;
  ceilings.copy = 2 * bytes / best_seconds(backend, [&] { backend.run(copy); });
  ceilings.read = bytes / best_seconds(backend, [&] { backend.run(read); });
  return ceilings;
}

double share_of(const Ceilings& ceilings, std::string_view what, double rate, double ceiling) {
  const double share = rate / ceiling;
  if (ceilings.firm && share > kMostShare)
    throw Error(
        fmt::format("{} came to {:.0f}% of the ceiling that was measured beside it, which cannot "
                    "be: the machine was busy while the ceiling was measured; run it again when "
                    "nothing else runs",
                    what, 100 * share));
  return share;
}

std::vector<double> time_runs(Backend& backend, int count, const std::function<void()>& work) {
  work();
  backend.synchronize();
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    const auto start = Clock::now();
    work();
    backend.synchronize();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return seconds;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace mixtral
