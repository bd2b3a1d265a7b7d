#pragma once

#include "cuda/sequences.cuh"

/// What the rows of a tile of queries see, for attention on tensor cores.
namespace mixtral::cuda {

constexpr int kQueries = 128;  // of a tile

/// What each of a tile's rows sees.
struct Seen {
  int sequence[kQueries], first[kQueries], last[kQueries];

  /// Thread t reads row t; rows behind the last one see what that sees.
  template <class Source>
  __device__ void read(const Source& op, int begin, int count) {
    const int r = static_cast<int>(threadIdx.x), n = begin + min(r, count - 1);
    if (r >= kQueries) return;
    sequence[r] = op.sequence(n);
    first[r] = op.first_seen(n);
    last[r] = op.last_seen(n);
  }
};

/// Rows of one sequence, and what they see: every row all of `whole_first` .. `whole_last`, some
/// row all of `first` .. `last`.
struct Run {
  int begin, end, sequence;
  int first, last, whole_first, whole_last;
};

__device__ inline Run run_from(const Seen& shared, int begin, int count) {
  Run run{begin,
          begin,
          shared.sequence[begin],
          shared.first[begin],
          shared.last[begin],
          shared.first[begin],
          shared.last[begin]};
  for (; run.end < count && shared.sequence[run.end] == run.sequence; ++run.end) {
    run.first = min(run.first, shared.first[run.end]);
    run.last = max(run.last, shared.last[run.end]);
    run.whole_first = max(run.whole_first, shared.first[run.end]);
    run.whole_last = min(run.whole_last, shared.last[run.end]);
  }
  return run;
}

}  // namespace mixtral::cuda
