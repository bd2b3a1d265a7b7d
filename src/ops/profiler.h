#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>

#include "ops/backend.h"

namespace mixtral {

namespace ops {
/// The op's name, and for products their shape, so that a profile tells them apart.
template <class Op>
std::string describe(const Op&) {
  return std::string(Op::kName);
}
std::string describe(const GroupedMatmul&);
std::string describe(const GroupedMatmulInput&);
std::string describe(const GroupedMatmulWeight&);
}  // namespace ops

/// Time, work and traffic per op. Off unless a Context is given one: then every op is followed by a
/// synchronisation, so that its time is its own (and overlaps are lost).
class Profiler {
 public:
  struct Row {
    int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };

  explicit Profiler(Backend& backend) : backend_(backend) {}
  const std::map<std::string, Row, std::less<>>& rows() const { return rows_; }
  void clear() { rows_.clear(); }

 private:
  friend class Context;
  using Clock = std::chrono::steady_clock;

  void begin() {
    backend_.synchronize();
    start_ = Clock::now();
  }
  void end(std::string_view name, const ops::Cost& cost);

  Backend& backend_;
  std::map<std::string, Row, std::less<>> rows_;
  Clock::time_point start_;
};

}  // namespace mixtral
