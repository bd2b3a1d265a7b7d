// The CUDA backend's ops at the shapes of training (8 x 2048 tokens, 8x7B's and `seed`'s widths)
// and decoding, against two ceilings measured in the same run: a copy within the device's memory
// and a large product.
//   cuda_bench [FILTER]
#include <cmath>
#include <utility>

#include "bench/cuda/bench.h"

namespace mixtral::bench {

std::vector<int32_t> even_offsets(int64_t rows, int groups) {
  std::vector<int32_t> offsets;
  for (int g = 0; g <= groups; ++g) offsets.push_back(static_cast<int32_t>(rows * g / groups));
  return offsets;
}

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

namespace {

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
}  // namespace mixtral::bench

int main(int count, char** arguments) {
  try {
    return mixtral::bench::run(count > 1 ? arguments[1] : "");
  } catch (const mixtral::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
