// The benchmark rows of the table of operations (tests/op_cases.h) on one backend:
//   ops_bench --device=cpu --threads=2 --benchmark_filter=GroupedMatmul
// Reports GFLOP/s, and GB/s as if every operand were moved once. --all adds the small cases.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "backends/registry.h"
#include "tests/op_cases.h"

namespace mixtral {
namespace {

struct Options {
  std::string device = "cpu";
  int threads = 0;
  bool all = false;
};

/// Takes our flags out of the arguments, and leaves the library's.
Options parse(int& count, char** arguments) {
  Options options;
  int kept = 1;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const auto value = [&](std::string_view flag) {
      return argument.starts_with(flag) ? argument.data() + flag.size() : nullptr;
    };
    if (const char* device = value("--device="))
      options.device = device;
    else if (const char* threads = value("--threads="))
      options.threads = std::atoi(threads);
    else if (argument == "--all")
      options.all = true;
    else
      arguments[kept++] = arguments[i];
  }
  count = kept;
  return options;
}

void measure(benchmark::State& state, Backend& backend, const test::OpCase& op, Dtype dtype) {
  test::Rig rig(backend, dtype, test::test_seed());
  try {
    op.build(rig);
    rig.execute();
  } catch (const Error& error) {  // a type that the backend does not compute with
    state.SkipWithError(error.what());
    return;
  }
  for (auto _ : state) rig.execute();
  const ops::Cost& cost = rig.cost_of_op();
  const auto rate = [](double work) {
    return benchmark::Counter(work * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  };
  if (cost.flops > 0) state.counters["GFLOP/s"] = rate(cost.flops);
  state.counters["GB/s"] = rate(cost.bytes);
}

int run(int count, char** arguments) {
  const Options options = parse(count, arguments);
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 2;
  const std::unique_ptr<Backend> backend = make_backend(options.device, options.threads);
  benchmark::AddCustomContext("device", backend->description());
  for (const auto& op : test::op_cases()) {
    if (!op.benchmark && !options.all) continue;
    for (Dtype dtype : op.dtypes)
      if (dtype != Dtype::f64 || options.device == "ref")
        benchmark::RegisterBenchmark(
            fmt::format("{}/{}", op.name, to_string(dtype)).c_str(),
            [&backend, op, dtype](benchmark::State& state) { measure(state, *backend, op, dtype); })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace mixtral

int main(int count, char** arguments) {
  try {
    return mixtral::run(count, arguments);
  } catch (const mixtral::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
