#include "ops/profiler.h"

#include <fmt/format.h>

namespace mixtral {
namespace ops {
namespace {

std::string product_name(std::string_view name, const Weight& weight) {
  std::string text =
      fmt::format("{} {}x{}x{}", name, weight.groups(), weight.outputs(), weight.inputs());
  if (!weight.dense()) text += fmt::format(" {}", weight.format.name());
  return text;
}

}  // namespace

std::string describe(const GroupedMatmul& op) { return product_name(op.kName, op.weight); }
std::string describe(const GroupedMatmulInput& op) { return product_name(op.kName, op.weight); }
std::string describe(const GroupedMatmulWeight& op) { return product_name(op.kName, op.dweight); }

}  // namespace ops

void Profiler::end(std::string_view name, const ops::Cost& cost) {
  backend_.synchronize();
  const std::chrono::duration<double> seconds = Clock::now() - start_;
  auto place = rows_.find(name);
  if (place == rows_.end()) place = rows_.emplace(std::string(name), Row{}).first;
  Row& row = place->second;
  ++row.calls;
  row.seconds += seconds.count();
  row.flops += cost.flops;
  row.bytes += cost.bytes;
}

}  // namespace mixtral
