#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"
#include "ops/adapters.h"

// The rows of a generating step, sorted by adapter: some hundreds at most, so one block does it,
// bound by latency. A warp takes an adapter at a time and looks at all rows, 32 at once.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;

struct Sorting {
  const int *adapters, *source, *groups;
  int *order, *place, *offsets;
  int rows, group_count, adapter_count, divisor;

  /// The row's adapter, or adapter_count.
  __device__ int adapter_of(int row, int grouped) const {
    const int adapter = adapters[source ? source[row] / divisor : row];
    return adapter >= 0 && adapter < adapter_count && row < grouped ? adapter : adapter_count;
  }
};

/// Which of the rows begin .. begin + 31 are an adapter's: a bit a row.
__device__ unsigned rows_of(const Sorting& op, int adapter, int begin, int grouped) {
  const int row = begin + static_cast<int>(threadIdx.x) % kWarp;
  return __ballot_sync(kAll, row < op.rows && op.adapter_of(row, grouped) == adapter);
}

/// offsets[a·G] holds the count of an adapter's rows, and then where they begin. The rows of no
/// adapter are counted behind the last one, where offsets[M·G] stands.
__global__ void __launch_bounds__(kThreads) sort_by_adapter(Sorting op) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int grouped = op.groups ? op.groups[op.group_count] : op.rows;

  for (int a = warp; a < op.adapter_count; a += kWarps) {
    int count = 0;
    for (int begin = 0; begin < op.rows; begin += kWarp)
      count += __popc(rows_of(op, a, begin, grouped));
    if (lane == 0) op.offsets[a * op.group_count] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int next = 0;
    for (int a = 0; a < op.adapter_count; ++a) {
      const int count = op.offsets[a * op.group_count];
      op.offsets[a * op.group_count] = next;
      next += count;
    }
    op.offsets[op.adapter_count * op.group_count] = next;
  }
  __syncthreads();
  for (int a = warp; a <= op.adapter_count; a += kWarps) {
    int next = op.offsets[a * op.group_count];
    for (int begin = 0; begin < op.rows; begin += kWarp) {
      const unsigned mine = rows_of(op, a, begin, grouped);
      if (mine >> lane & 1u) {
        const int to = next + __popc(mine & ((1u << lane) - 1));
        op.place[begin + lane] = to;
        op.order[to] = begin + lane;
      }
      // Groups that begin in these rows begin behind those of them that come before.
      if (a < op.adapter_count)
        for (int g = 1 + lane; g < op.group_count; g += kWarp)
          if (const int at = op.groups[g] - begin; at >= 0 && at < kWarp)
            op.offsets[a * op.group_count + g] = next + __popc(mine & ((1u << at) - 1));
      next += __popc(mine);
    }
    if (a < op.adapter_count)
      for (int g = 1 + lane; g < op.group_count; g += kWarp)
        if (op.groups[g] >= (op.rows + kWarp - 1) / kWarp * kWarp)
          op.offsets[a * op.group_count + g] = next;
  }
}

}  // namespace

void CudaBackend::run(const ops::SortByAdapter& op) {
  use_device();
  if (op.order.dim(0) == 0) return run(ops::Fill{.x = op.offsets});
  sort_by_adapter<<<1, kThreads, 0, stream_>>>(
      Sorting{data<int>(op.adapters), data<int>(op.source), data<int>(op.groups),
              data<int>(op.order), data<int>(op.place), data<int>(op.offsets),
              static_cast<int>(op.order.dim(0)), static_cast<int>(op.group_count()),
              static_cast<int>(op.adapter_count()), static_cast<int>(op.divisor)});
  check_launch("sort_by_adapter");
}

}  // namespace mixtral::cuda
