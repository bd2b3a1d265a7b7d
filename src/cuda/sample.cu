#include <algorithm>
#include <cmath>
#include <string>

#include "base/advice.h"
#include "base/random.h"
#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "ops/vocab.h"

// Sampling without a sort. Every filter keeps a beginning of the tokens in descending order of
// logits (ties to the lower id), and the draw is where the running sum of weights in that order
// passes a target; so each is a search for a place in the order, by counts or by weights. A place
// is found by histograms over an interval of logits that narrows to one bin of the last: twice, for
// a usual vocabulary. Weights are fixed-point integers, whose sums don't depend on the order in
// which threads add them: 44 fractional bits, with the largest weight 1 and up to 2^19 tokens.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 2 * kThreads;
constexpr int kBlocksOfProcessor = 2;
constexpr double kOne = 17592186044416.0;  // 2^44

using Count = unsigned long long;

/// Calls body(id, logit) for the thread's tokens, with several loads in flight.
template <class Body>
__device__ void each_token(const double* z, int vocabulary, const Body& body) {
  constexpr int kLoads = 8;
  for (int first = static_cast<int>(threadIdx.x); first < vocabulary; first += kLoads * kThreads) {
    double values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      if (first + i * kThreads < vocabulary) values[i] = z[first + i * kThreads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      if (first + i * kThreads < vocabulary) body(first + i * kThreads, values[i]);
  }
}

struct Request {
  const float* logits;
  const unsigned char* settings;
  const int* history;
  const unsigned* allowed;  // [S, ⌈V/32⌉], or null
  const float* bias;        // [S, V], or null
  const int* positions;
  int* tokens;
  float* log_probability;
  double* penalised;  // [blocks, V]
  Count* weights;     // [blocks, V]
  int sequences, vocabulary, window;
};

/// Larger for smaller logits, so that ascending keys are descending logits.
__device__ Count key_of(double x) {
  const auto bits = static_cast<Count>(__double_as_longlong(x + 0.0));
  return bits >> 63 ? bits : ~bits & 0x7fffffffffffffffull;
}

/// A token and its place in the order.
struct Place {
  Count key;
  int id;
  __device__ bool covers(Count other_key, int other_id) const {
    return other_key < key || (other_key == key && other_id <= id);
  }
};

struct Bins {
  Count mass[kBins];
  int count[kBins];
};

/// The running sum over the block's threads before this one, and the whole sum.
struct Scanned {
  Count before, total;
};
__device__ Scanned block_scan(Count value) {
  __shared__ Count warps[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Count sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) warps[warp] = sum;
  __syncthreads();
  Count before = 0, total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return {before + sum - value, total};
}

/// The first token in the order at which the running sum of amounts, itself included, exceeds
/// `target`; `none` when no sum does. What a token amounts to is its weight, or 1 if `by_count`;
/// tokens after `limit` amount to nothing.
__device__ Place find(const Request& op, const double* z, const Count* weights, Place limit,
                      Count target, bool by_count, Place none, Bins& bins) {
  __shared__ Count shared_target;
  __shared__ int shared_bin;
  // The place is among the tokens whose logits are from low to high.
  double high = -INFINITY, low = INFINITY;
  each_token(z, op.vocabulary, [&](int v, double logit) {
    if (!limit.covers(key_of(logit), v) || isinf(logit)) return;
    high = fmax(high, logit);
    low = fmin(low, logit);
  });
  high = block_reduce(high, Max{});
  low = -block_reduce(-low, Max{});
  bool first_round = true;
  while (first_round || low < high) {
    const double scale = low < high ? kBins / (high - low) : 0;
    // Falls with the logit; those of -inf, which only the first interval has, are in the last bin.
    const auto bin_of = [&](double logit) {
      return static_cast<int>(fmin((high - logit) * scale, kBins - 1.0));
    };
    const auto inside = [&](int v, double logit) {
      return logit <= high && (first_round || logit >= low) && limit.covers(key_of(logit), v);
    };
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
      bins.mass[i] = 0;
      bins.count[i] = 0;
    }
    if (threadIdx.x == 0) shared_bin = -1;
    __syncthreads();
    each_token(z, op.vocabulary, [&](int v, double logit) {
      if (!inside(v, logit)) return;
      const int bin = bin_of(logit);
      const Count amount = by_count ? Count{1} : weights[v];
      if (amount > 0) atomicAdd(&bins.mass[bin], amount);
      atomicAdd(&bins.count[bin], 1);
    });
    __syncthreads();
    // Each thread has two neighbouring bins.
    const Count first = bins.mass[2 * threadIdx.x], second = bins.mass[2 * threadIdx.x + 1];
    const Count before = block_scan(first + second).before;
    const bool in_first = before <= target && target < before + first;
    const bool in_second = before + first <= target && target < before + first + second;
    if (in_first || in_second) {
      shared_bin = static_cast<int>(2 * threadIdx.x) + (in_second ? 1 : 0);
      shared_target = target - before - (in_second ? first : 0);
    }
    __syncthreads();
    const int bin = shared_bin;
    if (bin < 0) return none;  // only in the first round
    target = shared_target;
    const bool alone = bins.count[bin] == 1;
    double bin_high = -INFINITY, bin_low = INFINITY;
    each_token(z, op.vocabulary, [&](int v, double logit) {
      if (!inside(v, logit) || bin_of(logit) != bin) return;
      bin_high = fmax(bin_high, logit);
      bin_low = fmin(bin_low, logit);
    });
    high = block_reduce(bin_high, Max{});
    low = -block_reduce(-bin_low, Max{});
    first_round = false;
    __syncthreads();
    if (alone) break;
  }
  // Tokens of the logit found, in order of their ids.
  __shared__ Place found;
  Count before = 0;
  for (int begin = 0; begin < op.vocabulary; begin += kThreads) {
    const int v = begin + static_cast<int>(threadIdx.x);
    Count amount = 0, key = 0;
    if (v < op.vocabulary) {
      key = key_of(z[v]);
      if (z[v] == high && limit.covers(key, v)) amount = by_count ? 1 : weights[v];
    }
    const Scanned scan = block_scan(amount);
    if (before + scan.before <= target && target < before + scan.before + amount) found = {key, v};
    before += scan.total;
    if (before > target) break;
  }
  __syncthreads();
  const Place result = found;
  __syncthreads();
  return result;
}

/// Σ of the weights of tokens up to `limit`.
__device__ Count mass_until(const Request& op, const double* z, const Count* weights, Place limit) {
  Count sum = 0;
  each_token(z, op.vocabulary, [&](int v, double logit) {
    if (limit.covers(key_of(logit), v)) sum += weights[v];
  });
  return block_sum(sum);
}

/// The smallest key, and its lowest id, over the block.
struct Earlier {
  __device__ static bool before(Place a, Place b) {
    return a.key < b.key || (a.key == b.key && a.id < b.id);
  }
};
__device__ Place earliest(Place mine) {
  __shared__ Place warps[kWarp];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Place other{__shfl_xor_sync(kAllLanes, mine.key, step),
                      __shfl_xor_sync(kAllLanes, mine.id, step)};
    if (Earlier::before(other, mine)) mine = other;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  Place best = warps[0];
  for (int w = 1; w < kThreads / kWarp; ++w)
    if (Earlier::before(warps[w], best)) best = warps[w];
  return best;
}

/// A uniform number in [0, 1) of 53 bits.
__device__ double uniform(uint64_t seed, int position) {
  const auto words = philox(seed, 0, static_cast<uint64_t>(static_cast<int64_t>(position)));
  const uint64_t word = uint64_t{words[0]} | uint64_t{words[1]} << 32;
  return static_cast<double>(word >> 11) * 0x1p-53;
}

__device__ int draw(const Request& op, const ops::SamplingSettings& settings, int position,
                    double* z, Count* weights, Bins& bins) {
  Place mine{~Count{0}, 0x7fffffff};
  each_token(z, op.vocabulary, [&](int v, double logit) {
    if (isnan(logit)) z[v] = logit = -INFINITY;
    const Place place{key_of(logit), v};
    if (Earlier::before(place, mine)) mine = place;
  });
  const Place first = earliest(mine);
  const double largest = z[first.id];
  if (settings.temperature <= 0 || isinf(largest)) return first.id;

  const auto temperature = static_cast<double>(settings.temperature);
  const auto min_p = static_cast<double>(settings.min_p);
  each_token(z, op.vocabulary, [&](int v, double logit) {
    weights[v] = static_cast<Count>(llrint(exp((logit - largest) / temperature) * kOne));
  });
  __syncthreads();

  const Place everything{~Count{0}, 0x7fffffff};
  Place kept = everything;
  if (settings.top_k > 0 && settings.top_k < op.vocabulary)
    kept = find(op, z, weights, kept, static_cast<Count>(settings.top_k - 1), true, kept, bins);
  if (settings.top_p < 1) {
    // Kept while the mass before is below the share: up to where the running sum reaches it.
    const double share =
        static_cast<double>(settings.top_p) * static_cast<double>(mass_until(op, z, weights, kept));
    kept = share <= 0
               ? first
               : find(op, z, weights, kept, static_cast<Count>(ceil(share)) - 1, false, kept, bins);
  }
  // A weight of the least share or more has a key of at most some value, so this too is a limit;
  // written as a change of the weights, it needs no search.
  if (min_p > 0) {
    each_token(z, op.vocabulary, [&](int v, double logit) {
      if (v != first.id && exp((logit - largest) / temperature) < min_p) weights[v] = 0;
    });
    __syncthreads();
  }
  const double total = static_cast<double>(mass_until(op, z, weights, kept));
  const auto target = static_cast<Count>(uniform(settings.seed, position) * total);
  return find(op, z, weights, kept, target, false, first, bins).id;
}

__device__ void sample_one(const Request& op, int64_t s, Bins& bins) {
  const float* logits = op.logits + s * op.vocabulary;
  double* z = op.penalised + int64_t{blockIdx.x} * op.vocabulary;
  Count* weights = op.weights + int64_t{blockIdx.x} * op.vocabulary;
  ops::SamplingSettings settings;  // of bytes, so aligned to nothing
  for (size_t i = 0; i < sizeof settings; ++i)
    reinterpret_cast<unsigned char*>(&settings)[i] = op.settings[s * sizeof settings + i];
  const float* bias = op.bias ? op.bias + s * op.vocabulary : nullptr;
  const auto biased = [&](int v) {
    const auto logit = static_cast<double>(logits[v]);
    return bias ? logit + static_cast<double>(bias[v]) : logit;
  };
#pragma unroll 8
  for (int v = static_cast<int>(threadIdx.x); v < op.vocabulary; v += kThreads) z[v] = biased(v);
  __syncthreads();
  // From the original logit, so that a token that occurs twice is penalised once.
  const auto penalty = static_cast<double>(settings.repeat_penalty);
  const int position = op.positions[s];
  for (int i = static_cast<int>(threadIdx.x); i < op.window; i += kThreads) {
    const int token = op.history[s * op.window + i];
    if (token < 0 || token >= op.vocabulary) continue;
    if (!ops::in_history(i, op.window, position, settings.repeat_last_n)) continue;
    const double logit = biased(token);
    z[token] = logit > 0 ? logit / penalty : logit * penalty;
  }
  __syncthreads();
  if (op.allowed) {
    const unsigned* words = op.allowed + s * ops::allowed_words(op.vocabulary);
    for (int v = static_cast<int>(threadIdx.x); v < op.vocabulary; v += kThreads)
      if ((words[v / 32] >> (v % 32) & 1) == 0) z[v] = -INFINITY;
    __syncthreads();
  }
  const int token = draw(op, settings, position, z, weights, bins);
  if (threadIdx.x == 0) op.tokens[s] = token;
  if (!op.log_probability) return;
  float largest = -INFINITY;
#pragma unroll 8
  for (int v = static_cast<int>(threadIdx.x); v < op.vocabulary; v += kThreads)
    largest = fmaxf(largest, logits[v]);
  largest = block_reduce(largest, Max{});
  double total = 0;
#pragma unroll 8
  for (int v = static_cast<int>(threadIdx.x); v < op.vocabulary; v += kThreads)
    total += static_cast<double>(expf(logits[v] - largest));
  total = block_sum(total);
  if (threadIdx.x == 0)
    op.log_probability[s] =
        static_cast<float>(static_cast<double>(logits[token]) - (largest + log(total)));
}

/// A block a sequence, and where there are many, several: so the room for penalised logits and
/// weights stays small, and most of it in the second-level cache.
__global__ void __launch_bounds__(kThreads) sample(Request op) {
  __shared__ Bins bins;
  wait_for_previous();
  allow_next();
  for (int64_t s = blockIdx.x; s < op.sequences; s += gridDim.x) {
    if (op.positions[s] == ops::kPadding) continue;
    sample_one(op, s, bins);
    __syncthreads();  // the room is free again
  }
}

struct AdvanceArguments {
  const int* drawn;
  int *inputs, *positions, *history;
  int sequences, window;
};

__global__ void advance(AdvanceArguments op) {
  wait_for_previous();
  allow_next();
  const int s = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (s >= op.sequences || op.positions[s] == ops::kPadding) return;
  const int token = op.drawn[s], position = op.positions[s] + 1;
  op.inputs[s] = token;
  op.positions[s] = position;
  if (op.history) op.history[int64_t{s} * op.window + position % op.window] = token;
}

}  // namespace

void CudaBackend::run(const ops::Sample& op) {
  use_device();
  if (op.logits.dtype() != Dtype::f32) refuse(op.logits.dtype());
  const int64_t sequences = op.logits.dim(0), vocabulary = op.logits.dim(1);
  if (sequences == 0) return;
  if (vocabulary > int64_t{1} << 19)
    throw AdvisedError(
        "‹device cuda›: samples from at most 524288 tokens; this model's vocabulary has " +
        std::to_string(vocabulary));
  const int64_t at_once = std::min(sequences, int64_t{processors_} * kBlocksOfProcessor);
  Scratch& room = scratch();
  auto* penalised = room.take<double>(at_once * vocabulary);
  auto* weights = room.take<Count>(at_once * vocabulary);
  chain(sample, dim3(blocks(at_once)), kThreads, 0, stream_,
        Request{data<float>(op.logits), data<unsigned char>(op.settings), data<int>(op.history),
                data<unsigned>(op.allowed), data<float>(op.bias), data<int>(op.positions),
                data<int>(op.tokens), data<float>(op.log_probability), penalised, weights,
                static_cast<int>(sequences), static_cast<int>(vocabulary),
                op.history ? static_cast<int>(op.history.dim(1)) : 0});
  check_launch("sample");
  chained();
}

void CudaBackend::run(const ops::Advance& op) {
  use_device();
  const int64_t sequences = op.drawn.dim(0);
  if (sequences == 0) return;
  chain(advance, dim3(blocks(divide_up(sequences, 128))), 128, 0, stream_,
        AdvanceArguments{data<int>(op.drawn), data<int>(op.inputs), data<int>(op.positions),
                         data<int>(op.history), static_cast<int>(sequences),
                         op.history ? static_cast<int>(op.history.dim(1)) : 0});
  check_launch("advance");
  chained();
}

}  // namespace mixtral::cuda
