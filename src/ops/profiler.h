#pragma once

#include <map>
#include <string>
#include <vector>

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

/// Time, work and traffic per op. Off unless a Context is given one: then a moment is noted before
/// and after every op (Backend::stamp), so that its time is its own and overlaps are lost. Work
/// that is recorded meanwhile shows the times of its last replay.
class Profiler {
 public:
  struct Row {
    int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };

  explicit Profiler(Backend& backend) : backend_(backend) {}
  /// What ran since the last clear, by op. Waits for it.
  std::map<std::string, Row, std::less<>> rows() const;
  /// Seconds from the begin of the first op to the end of the last one.
  double seconds() const;
  void clear();

 private:
  struct Run {
    std::string name;
    ops::Cost cost;
    int64_t begin = 0, end = 0;  // stamps
  };

  friend class Context;
  void begin() { begin_ = backend_.stamp(); }
  void end(std::string name, const ops::Cost& cost);

  Backend& backend_;
  std::vector<Run> runs_;
  int64_t begin_ = 0;
};

}  // namespace mixtral
