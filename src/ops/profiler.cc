#include "ops/profiler.h"

#include <fmt/format.h>

#include <utility>

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

void Profiler::end(std::string name, const ops::Cost& cost) {
  runs_.push_back({std::move(name), cost, begin_, backend_.stamp()});
}

std::map<std::string, Profiler::Row, std::less<>> Profiler::rows() const {
  std::map<std::string, Row, std::less<>> rows;
  for (const Run& run : runs_) {
    Row& row = rows[run.name];
    ++row.calls;
    row.seconds += backend_.seconds_between(run.begin, run.end);
    row.flops += run.cost.flops;
    row.bytes += run.cost.bytes;
  }
  return rows;
}

double Profiler::seconds() const {
  return runs_.empty() ? 0 : backend_.seconds_between(runs_.front().begin, runs_.back().end);
}

void Profiler::clear() {
  runs_.clear();
  backend_.forget_stamps();
}

}  // namespace mixtral
