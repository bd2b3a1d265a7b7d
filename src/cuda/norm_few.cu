#include "cuda/aligned.h"
#include "cuda/chain.cuh"
#include "cuda/combine_rows.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/fixed_rows.cuh"
#include "cuda/norm_few.h"
#include "cuda/route.cuh"
#include "cuda/row_shape.h"
#include "cuda/status.h"

// What lies between the products of a decoding step, in one launch: rows are made of experts' rows
// (CombineRows), normalised (RmsNorm), multiplied by the router (GroupedMatmul), and where there is
// one token it is given its experts (Route, GatherRows). Each of these alone waits for memory a few
// times and does little else.
namespace mixtral::cuda {
namespace {

constexpr int kPack = 8, kMostThreads = 512, kMostPacks = 2;  // of a thread
constexpr int kAtOnce = 8;                                    // experts
constexpr int kMostExperts = kWarp, kMostChosen = 8;

struct Few {
  const Bf16 *x, *residual;  // of the norm; or of what is combined
  const int* slot;           // [N, k]: x has experts' rows; or null
  const Bf16* weight;
  Bf16 *sum, *y;  // sum: null where x is normalised as it is
  float* rstd;
  int width, k;
  float eps;
  const Bf16* router;  // or null
  float* logits;
  int experts;
  // Of one token; expert is null where it is not routed.
  const int* positions;
  float* weights;
  int *expert, *slots, *source, *offsets;
  int chosen;
  Bf16* gathered;   // [chosen, width], or null
  FixedRows fixed;  // of y; or without bytes
};

/// Adds up eight values of each lane over the warp: lane l gets the sum of value l / 4.
__device__ float sum_eight(const float (&values)[kAtOnce]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, lane & 16 ? values[i] : values[i + 4], 16);
    four[i] = (lane & 16 ? values[i + 4] : values[i]) + other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, lane & 8 ? four[i] : four[i + 2], 8);
    two[i] = (lane & 8 ? four[i + 2] : four[i]) + other;
  }
  const float other = __shfl_xor_sync(kAllLanes, lane & 4 ? two[0] : two[1], 4);
  return warp_sum<4>((lane & 4 ? two[1] : two[0]) + other);
}

/// Gives the one token its experts, as Route does. By one warp; lane e has expert e's logit.
__device__ void route_token(const Few& op, float logit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool padding = op.positions && op.positions[0] == ops::kPadding;
  unsigned key = sortable(logit);
  bool free = lane < op.experts;
  int expert[kMostChosen];
  float weights[kMostChosen], largest = 0, total = 0;
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) {
    expert[j] = -1;
    weights[j] = 0;
    if (j >= op.chosen || padding) continue;
    const unsigned most = __reduce_max_sync(kAllLanes, free ? key : 0u);
    const int best = __ffs(static_cast<int>(__ballot_sync(kAllLanes, free && key == most))) - 1;
    if (lane == best) free = false;
    const float value = __shfl_sync(kAllLanes, logit, best);
    if (j == 0) largest = value;
    weights[j] = expf(value - largest);
    total += weights[j];
    expert[j] = best;
  }
  // Rows are sorted by expert; those of a token that is padding are no expert's.
  int before = 0;
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) {
    if (j >= op.chosen) continue;
    if (expert[j] >= 0 && expert[j] < lane) ++before;
    int row = 0;
#pragma unroll
    for (int i = 0; i < kMostChosen; ++i)
      if (i < op.chosen && expert[i] < expert[j]) ++row;
    if (lane != j) continue;
    op.expert[j] = expert[j];
    op.weights[j] = padding ? 0.0f : weights[j] / total;
    op.slots[j] = padding ? -1 : row;
    op.source[padding ? j : row] = padding ? 0 : j;
  }
  if (lane <= op.experts) op.offsets[lane] = before;
  if (op.experts == kWarp && lane == 0) op.offsets[kWarp] = padding ? 0 : op.chosen;
}

/// A block a row.
template <int items>
__global__ void __launch_bounds__(kMostThreads) norm_few_rows(const __grid_constant__ Few op) {
  __shared__ float parts[kMostThreads / kWarp][kAtOnce];
  __shared__ float logits[kMostExperts];
  using Eight = Pack<Bf16, kPack>;
  allow_next();
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const auto column_of = [&](int i) { return (i * threads + thread) * kPack; };
  // Weights are the same at any time.
  Eight weight[items], router[kAtOnce][items];
  const auto load_router = [&](int first) {
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
#pragma unroll
      for (int i = 0; i < items; ++i)
        if (first + e < op.experts && column_of(i) < op.width)
          router[e][i] = *reinterpret_cast<const Eight*>(op.router + int64_t{first + e} * op.width +
                                                         column_of(i));
  };
#pragma unroll
  for (int i = 0; i < items; ++i)
    if (column_of(i) < op.width)
      weight[i] = *reinterpret_cast<const Eight*>(op.weight + column_of(i));
  if (op.router) load_router(0);
  wait_for_previous();

  const int64_t row = blockIdx.x, start = row * op.width;
  float s[items][kPack];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int column = column_of(i);
    if (column >= op.width) break;
    if (op.slot) {
      combine_rows<kPack>(op.x, op.slot + row * op.k, op.k, op.width, column,
                          op.residual ? op.residual + start : nullptr, s[i]);
    } else {
      load(op.x + start + column, s[i]);
      if (op.residual) {
        float added[kPack];
        load(op.residual + start + column, added);
#pragma unroll
        for (int j = 0; j < kPack; ++j) s[i][j] += added[j];
      }
    }
    if (op.sum) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) s[i][j] = widen<float>(narrow<Bf16>(s[i][j]));
      store(op.sum + start + column, s[i]);
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) squares += s[i][j] * s[i][j];
  }
  const float mean = block_sum(squares) / static_cast<float>(op.width);
  const float scale = 1.0f / sqrtf(mean + op.eps);
  if (op.rstd && thread == 0) op.rstd[row] = scale;
  const auto normalised = [&](int i, int j) {
    return widen<float>(weight[i].at[j]) * (s[i][j] * scale);
  };
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int column = column_of(i);
    const bool inside = column < op.width;
    if (op.fixed.bytes) {  // by all lanes
      static_assert(kPack == kFixedUnit);
      uint32_t pairs[kPack / 2] = {};
      if (inside)
#pragma unroll
        for (int j = 0; j < kPack / 2; ++j)
          pairs[j] = pack_bf16(normalised(i, 2 * j), normalised(i, 2 * j + 1));
      fix_unit({pairs[0], pairs[1], pairs[2], pairs[3]}, row, column / kPack, inside, op.fixed);
    }
    if (!inside) continue;
#pragma unroll
    for (int j = 0; j < kPack; ++j) s[i][j] = widen<float>(narrow<Bf16>(normalised(i, j)));
    store(op.y + start + column, s[i]);
    if (op.gathered)
      for (int j = 0; j < op.chosen; ++j) store(op.gathered + int64_t{j} * op.width + column, s[i]);
  }
  if (!op.router) return;

  for (int first = 0; first < op.experts; first += kAtOnce) {
    if (first > 0) load_router(first);
    float sums[kAtOnce] = {};
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) {
      if (first + e >= op.experts) continue;
#pragma unroll
      for (int i = 0; i < items; ++i) {
        if (column_of(i) >= op.width) break;
#pragma unroll
        for (int j = 0; j < kPack; ++j)
          sums[e] = fmaf(widen<float>(router[e][i].at[j]), s[i][j], sums[e]);
      }
    }
    const float sum = sum_eight(sums);
    __syncthreads();  // the parts of the experts before have been read
    if (thread % 4 == 0) parts[thread / kWarp][thread % kWarp / 4] = sum;
    __syncthreads();
    if (thread >= kAtOnce || first + thread >= op.experts) continue;
    float logit = parts[0][thread];
    for (int w = 1; w < threads / kWarp; ++w) logit += parts[w][thread];
    logits[first + thread] = logit;
    op.logits[row * op.experts + first + thread] = logit;
  }
  if (!op.expert || thread >= kWarp) return;
  __syncwarp();
  route_token(op, thread < op.experts ? logits[thread] : 0.0f);
}

/// Whether two tensors have no byte in common. One block reads all of its row before it writes what
/// comes of it; but where one reads its row, another may already have written.
bool apart(const Tensor& a, const Tensor& b) {
  if (a.empty() || b.empty()) return true;
  const auto* const first = static_cast<const char*>(a.data());
  const auto* const second = static_cast<const char*>(b.data());
  return first + a.bytes() <= second || second + b.bytes() <= first;
}

bool is_bf16(const Tensor& tensor) { return tensor.dtype() == Dtype::bf16 && aligned(tensor); }

}  // namespace

bool is_few(const ops::CombineRows& op) {
  return op.out.dim(0) > 0 && op.out.dim(0) <= kFewNormRows && op.out.dim(1) % kPack == 0 &&
         op.out.dim(1) <= kMostThreads * kMostPacks * kPack && is_bf16(op.y) && is_bf16(op.out) &&
         (op.residual.empty() || is_bf16(op.residual));
}

bool is_few(const ops::RmsNorm& op) {
  return op.x.dim(0) > 0 && op.x.dim(0) <= kFewNormRows && op.x.dim(1) % kPack == 0 &&
         op.x.dim(1) <= kMostThreads * kMostPacks * kPack && is_bf16(op.x) && is_bf16(op.y) &&
         is_bf16(op.weight) && (op.residual.empty() || (is_bf16(op.residual) && is_bf16(op.sum)));
}

bool joins(const ops::CombineRows& rows, const ops::RmsNorm& norm) {
  return norm.residual.empty() && norm.x.data() == rows.out.data() &&
         norm.x.shape() == rows.out.shape() &&
         (norm.x.dim(0) == 1 || (apart(norm.y, rows.y) && apart(norm.y, rows.slot) &&
                                 apart(norm.y, rows.residual) && apart(norm.rstd, rows.y) &&
                                 apart(norm.rstd, rows.slot) && apart(norm.rstd, rows.residual)));
}

bool joins(const ops::RmsNorm& norm, const ops::GroupedMatmul& router) {
  return router.weight.dense() && router.weight.groups() == 1 &&
         router.weight.outputs() <= kMostExperts && router.weight.inputs() == norm.y.dim(1) &&
         router.offsets.empty() && router.y.dtype() == Dtype::f32 && router.y_begin == 0 &&
         router.y.dim(1) == router.weight.outputs() && router.scale == 1 && !router.accumulate &&
         router.operands == ops::Operands::exact && is_bf16(router.weight.tensor()) &&
         router.x.data() == norm.y.data() && router.x.shape() == norm.y.shape() &&
         (norm.x.dim(0) == 1 || (apart(router.y, norm.x) && apart(router.y, norm.residual)));
}

bool joins(const ops::GroupedMatmul& router, const ops::Route& route) {
  return route.logits.data() == router.y.data() && route.logits.dim(0) == 1 &&
         route.weights.dim(1) <= kMostChosen && route.weights.dtype() == Dtype::f32;
}

bool joins(const ops::RmsNorm& norm, const ops::Route& route, const ops::GatherRows& rows) {
  return rows.x.data() == norm.y.data() && rows.source.data() == route.source.data() &&
         rows.divisor == route.weights.dim(1) && rows.y.dim(0) == rows.divisor && is_bf16(rows.y);
}

bool joins(const ops::RmsNorm& norm, const Tensor& x, const FixedLayout& layout) {
  return x.data() == norm.y.data() && x.shape() == norm.y.shape() &&
         x.dim(1) % layout.pad_columns == 0;
}

void norm_few(const ops::RmsNorm& norm, const ops::CombineRows* combine,
              const ops::GroupedMatmul* router, const ops::Route* route,
              const ops::GatherRows* gather, const FixedRows* fixed, cudaStream_t stream) {
  const int64_t width = norm.x.dim(1);
  Few few = {};
  few.x = data<Bf16>(combine ? combine->y : norm.x);
  few.residual = data<Bf16>(combine ? combine->residual : norm.residual);
  few.slot = combine ? data<int>(combine->slot) : nullptr;
  few.k = combine ? static_cast<int>(combine->slot.dim(1)) : 0;
  few.weight = data<Bf16>(norm.weight);
  few.sum = data<Bf16>(combine ? combine->out : norm.sum);
  few.y = data<Bf16>(norm.y);
  few.rstd = data<float>(norm.rstd);
  few.width = static_cast<int>(width);
  few.eps = static_cast<float>(norm.eps);
  if (router) {
    few.router = data<Bf16>(router->weight.tensor());
    few.logits = data<float>(router->y);
    few.experts = static_cast<int>(router->weight.outputs());
  }
  if (route) {
    few.positions = data<int>(route->positions);
    few.weights = data<float>(route->weights);
    few.expert = data<int>(route->expert);
    few.slots = data<int>(route->slot);
    few.source = data<int>(route->source);
    few.offsets = data<int>(route->offsets);
    few.chosen = static_cast<int>(route->weights.dim(1));
  }
  if (fixed) few.fixed = *fixed;
  if (gather) few.gathered = data<Bf16>(gather->y);
  const RowShape shape = shape_of(width, kPack);
  const auto launch = [&](auto items) {
    chain(norm_few_rows<items()>, dim3(blocks(norm.x.dim(0))), static_cast<unsigned>(shape.threads),
          0, stream, few);
  };
  if (shape.items == 1)
    launch(std::integral_constant<int, 1>{});
  else
    launch(std::integral_constant<int, kMostPacks>{});
  check_launch("rms_norm");
}

}  // namespace mixtral::cuda
