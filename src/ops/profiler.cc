#include "ops/profiler.h"

namespace mixtral {

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
