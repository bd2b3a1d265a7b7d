#include "cli/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace mixtral {

using nlohmann::ordered_json;

void Report::line(const std::string& key, const std::string& text, double value) {
  json_[key] = value;
  if (!as_json_) fmt::print("{:22} {}\n", key, text);
}

void report_ceilings(Report& report, const Ceilings& ceilings) {
  const auto gb = [&](const char* key, double rate) {
    report.line(key, fmt::format("{:.1f}", rate * 1e-9), rate * 1e-9);
  };
  gb("read_gb_per_s", ceilings.read);
  gb("copy_gb_per_s", ceilings.copy);
  const auto tera = [&](const char* key, double rate) {
    if (rate > 0) report.line(key, fmt::format("{:.3f}", rate * 1e-12), rate * 1e-12);
  };
  tera("product_tflop_per_s", ceilings.product);
  tera("f32_peak_tflop_per_s", ceilings.f32);
  tera("bf16_peak_tflop_per_s", ceilings.bf16);
  tera("int8_peak_tops_per_s", ceilings.int8);
}

void report_rate(Report& report, const Ceilings& ceilings, double seconds, double tokens,
                 double flops_per_token) {
  report.line("tok_per_s", fmt::format("{:.1f}", tokens / seconds), tokens / seconds);
  const double rate = flops_per_token * tokens / seconds;
  report.line("model_tflop_per_s",
              fmt::format("{:.3f} ({:.1f}% of the product)", rate * 1e-12,
                          100 * share_of(ceilings, "the whole work", rate, ceilings.product)),
              rate * 1e-12);
}

void report_profile(Report& report, const Ceilings& ceilings, const Profiler& profiler) {
  const auto by_name = profiler.rows();
  std::vector<std::pair<std::string, Profiler::Row>> rows(by_name.begin(), by_name.end());
  const bool as_json = report.as_json();
  double total = 0;
  for (const auto& [name, row] : rows) total += row.seconds;
  const double all = profiler.seconds();
  std::ranges::sort(
      rows, [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  if (!as_json)
    fmt::print(
        "\nkernels of one step: {:.3f} ms, and {:.3f} ms between them\n"
        "{:38} {:>6} {:>10} {:>6} {:>10} {:>10} {:>9}\n",
        total * 1e3, (all - total) * 1e3, "op", "calls", "ms", "share", "GB/s", "GFLOP/s",
        "of bound");
  ordered_json table = ordered_json::array();
  for (const auto& [name, row] : rows) {
    const double product = share_of(ceilings, name, row.flops / row.seconds, ceilings.product);
    // Above the memory's rate are operands that stayed in a cache.
    const double memory = row.bytes / row.seconds / std::max(ceilings.read, ceilings.copy);
    const double bound = std::max(product, memory);
    if (!as_json)
      fmt::print("{:38} {:6} {:10.3f} {:5.1f}% {:10.1f} {:10.1f} {:>9}\n", name, row.calls,
                 row.seconds * 1e3, 100 * row.seconds / total, row.bytes / row.seconds * 1e-9,
                 row.flops / row.seconds * 1e-9,
                 memory > 1.05 ? "in cache" : fmt::format("{:.0f}%", 100 * bound));
    table.push_back({{"op", name},
                     {"calls", row.calls},
                     {"seconds", row.seconds},
                     {"gb_per_s", row.bytes / row.seconds * 1e-9},
                     {"gflop_per_s", row.flops / row.seconds * 1e-9},
                     {"share_of_bound", bound}});
  }
  report.json()["kernels"] = table;
  report.json()["kernel_seconds"] = total;
  report.json()["step_seconds"] = all;
}

}  // namespace mixtral
