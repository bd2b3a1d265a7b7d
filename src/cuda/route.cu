#include <cmath>

#include "base/advice.h"
#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/norm_few.h"
#include "cuda/route.cuh"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "ops/moe.h"

// The router: which experts a token goes to, the sort of assignments by expert, and the router's
// own losses. Sorting is by counting: each block of 256 tokens counts its assignments an expert,
// one block turns the counts into first rows, and each block then places its assignments in order
// of tokens. Up to 256 tokens (decoding) it is one launch. Bound by launch latency at a model's
// sizes.
namespace mixtral::cuda {
namespace {

constexpr int kTokens = 256;  // a block
constexpr int kWarps = kTokens / kWarp;
constexpr int kMostExperts = 2048;

__device__ bool is_padding(const int* positions, int64_t token) {
  return positions && positions[token] == ops::kPadding;
}

struct Routing {
  const float* logits;
  const int* positions;
  float* weights;
  int *expert, *slot, *source, *offsets;
  int64_t tokens;
  int experts, k;
};

/// The k largest logits of a token in descending order, ties to the lower index, and their softmax;
/// nothing for padding.
__device__ void choose(const Routing& op, int64_t token) {
  const float* logits = op.logits + token * op.experts;
  int* expert = op.expert + token * op.k;
  float* weights = op.weights + token * op.k;
  if (is_padding(op.positions, token)) {
    for (int j = 0; j < op.k; ++j) {
      expert[j] = -1;
      weights[j] = 0;
    }
    return;
  }
  unsigned last_key = 0xffffffffu;
  int last = -1;
  float largest = 0, total = 0;
  for (int j = 0; j < op.k; ++j) {
    unsigned best_key = 0;
    int best = -1;
    for (int e = 0; e < op.experts; ++e) {
      const unsigned key = sortable(logits[e]);
      const bool after = key < last_key || (key == last_key && e > last);
      if (after && (best < 0 || key > best_key)) {
        best_key = key;
        best = e;
      }
    }
    last_key = best_key;
    last = best;
    if (j == 0) largest = logits[best];
    const float weight = expf(logits[best] - largest);
    total += weight;
    expert[j] = best;
    weights[j] = weight;
  }
  for (int j = 0; j < op.k; ++j) weights[j] /= total;
}

/// For each warp of the block and each expert, the lanes whose token goes there.
__device__ void gather_lanes(const Routing& op, int64_t token, unsigned* lanes) {
  for (int i = static_cast<int>(threadIdx.x); i < kWarps * op.experts; i += kTokens) lanes[i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (token < op.tokens && op.expert[token * op.k] >= 0)
    for (int j = 0; j < op.k; ++j)
      atomicOr(&lanes[warp * op.experts + op.expert[token * op.k + j]], 1u << lane);
  __syncthreads();
}

/// Writes slots and sources of the block's tokens, and sources of rows that are no expert's.
/// first[e] is the row of the block's first assignment to e; `lanes` is overwritten.
__device__ void place(const Routing& op, int64_t token, unsigned* lanes, const int* first,
                      int* warp_first) {
  for (int e = static_cast<int>(threadIdx.x); e < op.experts; e += kTokens) {
    int row = first[e];
    for (int warp = 0; warp < kWarps; ++warp) {
      warp_first[warp * op.experts + e] = row;
      row += __popc(lanes[warp * op.experts + e]);
    }
  }
  __syncthreads();
  if (token >= op.tokens) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int j = 0; j < op.k; ++j) {
    const int64_t assignment = token * op.k + j;
    if (assignment >= op.offsets[op.experts]) op.source[assignment] = 0;
    if (op.expert[assignment] < 0) {
      op.slot[assignment] = -1;
      continue;
    }
    const int at = warp * op.experts + op.expert[assignment];
    const int row = warp_first[at] + __popc(lanes[at] & ((1u << lane) - 1));
    op.slot[assignment] = row;
    op.source[row] = static_cast<int>(assignment);
  }
}

/// counts[e, block] = assignments of the block's tokens to e.
__global__ void __launch_bounds__(kTokens) route_count(Routing op, int* counts) {
  extern __shared__ unsigned lanes[];
  const int64_t token = int64_t{blockIdx.x} * kTokens + threadIdx.x;
  if (token < op.tokens) choose(op, token);
  gather_lanes(op, token, lanes);
  for (int e = static_cast<int>(threadIdx.x); e < op.experts; e += kTokens) {
    int count = 0;
    for (int warp = 0; warp < kWarps; ++warp) count += __popc(lanes[warp * op.experts + e]);
    counts[int64_t{e} * gridDim.x + blockIdx.x] = count;
  }
}

/// Replaces each expert's counts by their running sum before each block, and writes the offsets.
__global__ void __launch_bounds__(1024)
    route_scan(int* counts, int count_blocks, int experts, int* offsets) {
  extern __shared__ int totals[];
  const int lane = threadIdx.x % kWarp;
  for (int e = threadIdx.x / kWarp; e < experts; e += static_cast<int>(blockDim.x / kWarp)) {
    int before = 0;
    for (int begin = 0; begin < count_blocks; begin += kWarp) {
      const bool inside = begin + lane < count_blocks;
      int* place = counts + int64_t{e} * count_blocks + begin + lane;
      const int count = inside ? *place : 0;
      int sum = count;
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += other;
      }
      if (inside) *place = before + sum - count;
      before += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    if (lane == 0) totals[e] = before;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int row = 0;
  for (int e = 0; e < experts; ++e) {
    offsets[e] = row;
    row += totals[e];
  }
  offsets[experts] = row;
}

__global__ void __launch_bounds__(kTokens) route_place(Routing op, const int* counts) {
  extern __shared__ unsigned lanes[];
  int* warp_first = reinterpret_cast<int*>(lanes + kWarps * op.experts);
  int* first = warp_first + kWarps * op.experts;
  const int64_t token = int64_t{blockIdx.x} * kTokens + threadIdx.x;
  for (int e = static_cast<int>(threadIdx.x); e < op.experts; e += kTokens)
    first[e] = op.offsets[e] + counts[int64_t{e} * gridDim.x + blockIdx.x];
  gather_lanes(op, token, lanes);
  place(op, token, lanes, first, warp_first);
}

/// All of it, for the tokens of one block.
__global__ void __launch_bounds__(kTokens) route_few(Routing op) {
  wait_for_previous();
  allow_next();
  extern __shared__ unsigned lanes[];
  int* warp_first = reinterpret_cast<int*>(lanes + kWarps * op.experts);
  int* first = warp_first + kWarps * op.experts;
  const int64_t token = threadIdx.x;
  if (token < op.tokens) choose(op, token);
  gather_lanes(op, token, lanes);
  for (int e = static_cast<int>(threadIdx.x); e < op.experts; e += kTokens) {
    int count = 0;
    for (int warp = 0; warp < kWarps; ++warp) count += __popc(lanes[warp * op.experts + e]);
    first[e] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int row = 0;
    for (int e = 0; e < op.experts; ++e) {
      const int count = first[e];
      first[e] = row;
      op.offsets[e] = row;
      row += count;
    }
    op.offsets[op.experts] = row;
  }
  __syncthreads();
  place(op, token, lanes, first, warp_first);
}

/// log Σ exp of a token's logits.
__device__ float log_sum_exp(const float* logits, int experts) {
  float largest = logits[0], total = 0;
  for (int e = 1; e < experts; ++e) largest = fmaxf(largest, logits[e]);
  for (int e = 0; e < experts; ++e) total += expf(logits[e] - largest);
  return largest + logf(total);
}

struct Gradient {
  const float *logits, *weights;
  const int* expert;
  const float *dweights, *dprobability;
  float* dlogits;
  int64_t tokens;
  int experts, k;
  float z_scale;
};

__global__ void __launch_bounds__(128) route_backward(Gradient op) {
  const int64_t token = int64_t{blockIdx.x} * 128 + threadIdx.x;
  if (token >= op.tokens) return;
  const float* logits = op.logits + token * op.experts;
  const float* weights = op.weights + token * op.k;
  const float* dweights = op.dweights + token * op.k;
  const int* expert = op.expert + token * op.k;
  const float log_sum = log_sum_exp(logits, op.experts);
  float w_dw = 0, p_dp = 0;
  for (int j = 0; j < op.k; ++j) w_dw += weights[j] * dweights[j];
  if (op.dprobability)
    for (int e = 0; e < op.experts; ++e) p_dp += expf(logits[e] - log_sum) * op.dprobability[e];
  for (int e = 0; e < op.experts; ++e) {
    const float p = expf(logits[e] - log_sum);
    float gradient = op.z_scale * 2 * log_sum * p;
    if (op.dprobability) gradient += p * (op.dprobability[e] - p_dp);
    for (int j = 0; j < op.k; ++j)
      if (expert[j] == e) gradient += weights[j] * (dweights[j] - w_dw);
    op.dlogits[token * op.experts + e] = gradient;
  }
}

/// partial[block, c] over the block's tokens: c < E the probability of expert c, then lse², the
/// entropy, and 1.
__global__ void __launch_bounds__(kTokens)
    router_partial(const float* all_logits, const int* positions, int64_t tokens, int experts,
                   float* partial) {
  const int64_t token = int64_t{blockIdx.x} * kTokens + threadIdx.x;
  const bool inside = token < tokens && !is_padding(positions, token);
  const float* logits = all_logits + (inside ? token : 0) * experts;
  const float log_sum = log_sum_exp(logits, experts);
  float entropy = 0;
  partial += int64_t{blockIdx.x} * (experts + 3);
  for (int e = 0; e < experts; ++e) {
    const float logit = logits[e] - log_sum;
    const float p = inside ? expf(logit) : 0.0f;
    if (p > 0) entropy -= p * logit;
    const float sum = block_sum(p);
    if (threadIdx.x == 0) partial[e] = sum;
  }
  const float squares = block_sum(inside ? log_sum * log_sum : 0.0f);
  entropy = block_sum(entropy);
  const float count = block_sum(inside ? 1.0f : 0.0f);
  if (threadIdx.x != 0) return;
  partial[experts] = squares;
  partial[experts + 1] = entropy;
  partial[experts + 2] = count;
}

struct Report {
  const float* partial;
  const int* offsets;
  float *load, *importance, *z, *entropy;
  int count_blocks, experts;
};

/// A warp a column of the partial sums.
__global__ void __launch_bounds__(256) router_statistics(Report op) {
  const int lane = threadIdx.x % kWarp;
  const int column = static_cast<int>(blockIdx.x) * 8 + threadIdx.x / kWarp;
  if (column >= op.experts + 2) return;
  double sum = 0, count = 0;
  for (int b = lane; b < op.count_blocks; b += kWarp) {
    const float* partial = op.partial + int64_t{b} * (op.experts + 3);
    sum += partial[column];
    count += partial[op.experts + 2];
  }
  count = fmax(warp_sum(count), 1.0);
  sum = warp_sum(sum) / count;
  if (lane != 0) return;
  if (column < op.experts) {
    op.importance[column] = static_cast<float>(sum);
    op.load[column] = static_cast<float>((op.offsets[column + 1] - op.offsets[column]) / count);
  } else if (column == op.experts) {
    *op.z = static_cast<float>(sum);
  } else {
    *op.entropy = static_cast<float>(sum);
  }
}

struct Balance {
  const float *load, *importance, *z;
  float *losses, *dprobability;
  int layers, experts;
  double tokens, coefficient;
  bool pooled;
};

__device__ double mean_over_layers(const float* x, const Balance& op, int e) {
  double sum = 0;
  for (int l = 0; l < op.layers; ++l) sum += x[l * op.experts + e];
  return sum / op.layers;
}

__global__ void __launch_bounds__(256) balance_loss(Balance op) {
  double aux = 0, z = 0;
  for (int i = static_cast<int>(threadIdx.x); i < op.layers * op.experts; i += 256) {
    const int e = i % op.experts;
    const double factor = op.pooled ? mean_over_layers(op.load, op, e) : op.load[i];
    if (!op.pooled)
      aux += op.experts * factor * op.importance[i] / op.layers;
    else if (i < op.experts)
      aux += op.experts * factor * mean_over_layers(op.importance, op, e);
    if (op.dprobability)
      op.dprobability[i] =
          static_cast<float>(op.coefficient * op.experts * factor / (op.layers * op.tokens));
  }
  for (int l = static_cast<int>(threadIdx.x); l < op.layers; l += 256) z += op.z[l] / op.layers;
  aux = block_sum(aux);
  z = block_sum(z);
  if (threadIdx.x != 0) return;
  op.losses[0] = static_cast<float>(aux);
  op.losses[1] = static_cast<float>(z);
}

}  // namespace

void CudaBackend::run(const ops::Route& op) {
  if (waiting_.router && !waiting_.route && joins(*waiting_.router, op)) {
    waiting_.route = op;
    return;
  }
  use_device();
  if (op.logits.dtype() != Dtype::f32) refuse(op.logits.dtype());
  const int64_t tokens = op.logits.dim(0);
  const auto experts = static_cast<int>(op.logits.dim(1));
  if (experts > kMostExperts)
    throw AdvisedError("‹device cuda› routes to at most " + std::to_string(kMostExperts) +
                       " experts; the model has " + std::to_string(experts));
  if (tokens == 0) return run(ops::Fill{.x = op.offsets});
  const Routing routing{data<float>(op.logits),
                        data<int>(op.positions),
                        data<float>(op.weights),
                        data<int>(op.expert),
                        data<int>(op.slot),
                        data<int>(op.source),
                        data<int>(op.offsets),
                        tokens,
                        experts,
                        static_cast<int>(op.weights.dim(1))};
  const auto words = static_cast<size_t>(experts) * sizeof(int);
  const size_t lanes = kWarps * words, all = 2 * lanes + words;
  if (all > 48 * 1024) {
    for (const void* kernel :
         {reinterpret_cast<const void*>(route_count), reinterpret_cast<const void*>(route_place),
          reinterpret_cast<const void*>(route_few)})
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(all)),
                 "route");
  }
  if (tokens <= kTokens) {
    chain(route_few, dim3(1), kTokens, static_cast<size_t>(all), stream_, routing);
  } else {
    const unsigned grid = blocks(divide_up(tokens, kTokens));
    int* counts = scratch().take<int>(int64_t{experts} * grid);
    route_count<<<grid, kTokens, lanes, stream_>>>(routing, counts);
    route_scan<<<1, 1024, words, stream_>>>(counts, static_cast<int>(grid), experts,
                                            routing.offsets);
    route_place<<<grid, kTokens, all, stream_>>>(routing, counts);
  }
  check_launch("route");
}

void CudaBackend::run(const ops::RouteBackward& op) {
  use_device();
  const int64_t tokens = op.logits.dim(0);
  if (tokens == 0) return;
  route_backward<<<blocks(divide_up(tokens, 128)), 128, 0, stream_>>>(
      Gradient{data<float>(op.logits), data<float>(op.weights), data<int>(op.expert),
               data<float>(op.dweights), data<float>(op.dprobability), data<float>(op.dlogits),
               tokens, static_cast<int>(op.logits.dim(1)), static_cast<int>(op.weights.dim(1)),
               static_cast<float>(op.z_scale)});
  check_launch("route_backward");
}

void CudaBackend::run(const ops::RouterStatistics& op) {
  use_device();
  const int64_t tokens = op.logits.dim(0);
  CHECK(tokens > 0, "statistics of no tokens");
  const auto experts = static_cast<int>(op.logits.dim(1));
  const unsigned grid = blocks(divide_up(tokens, kTokens));
  auto* partial = scratch().take<float>(int64_t{grid} * (experts + 3));
  router_partial<<<grid, kTokens, 0, stream_>>>(data<float>(op.logits), data<int>(op.positions),
                                                tokens, experts, partial);
  router_statistics<<<blocks(divide_up(experts + 2, 8)), 256, 0, stream_>>>(
      Report{partial, data<int>(op.offsets), data<float>(op.load), data<float>(op.importance),
             data<float>(op.z), data<float>(op.entropy), static_cast<int>(grid), experts});
  check_launch("router_statistics");
}

void CudaBackend::run(const ops::BalanceLoss& op) {
  use_device();
  balance_loss<<<1, 256, 0, stream_>>>(Balance{
      data<float>(op.load), data<float>(op.importance), data<float>(op.z), data<float>(op.losses),
      data<float>(op.dprobability), static_cast<int>(op.load.dim(0)),
      static_cast<int>(op.load.dim(1)), static_cast<double>(op.tokens), op.coefficient, op.pooled});
  check_launch("balance_loss");
}

}  // namespace mixtral::cuda
