#include "base/random.h"
#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "ops/optim.h"

// One launch over the flat buffers of all parameters; bound by bandwidth.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNormBlocks = 1024;  // fixed, so that the order of the sum is
constexpr int kNormPacks = 8;      // that a thread of these reads before it adds them

template <class T>
__global__ void __launch_bounds__(kThreads)
    squares(const T* x, int64_t count, bool packed, double* partial) {
  constexpr int n = kPackOf<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  constexpr int64_t kStride = int64_t{kNormBlocks} * kThreads;
  double sum = 0;
  if (packed) {
    for (int64_t i = thread; i < count / n; i += kNormPacks * kStride) {
      Pack<T, n> packs[kNormPacks] = {};
#pragma unroll
      for (int u = 0; u < kNormPacks; ++u)
        if (i + u * kStride < count / n)
          packs[u] = *reinterpret_cast<const Pack<T, n>*>(x + (i + u * kStride) * n);
#pragma unroll
      for (int u = 0; u < kNormPacks; ++u)
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const auto value = static_cast<double>(packs[u].at[j]);
          sum += value * value;
        }
    }
    x += count / n * n;
    count %= n;
  }
  for (int64_t i = thread; i < count; i += kStride) {
    const auto value = static_cast<double>(x[i]);
    sum += value * value;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kNormBlocks)
    add_squares(const double* partial, double* sum, bool accumulate) {
  const double total = block_sum(partial[threadIdx.x]);
  if (threadIdx.x == 0) *sum = accumulate ? *sum + total : total;
}

template <class S>
struct Update {
  float* value;
  const float* grad;
  S *m, *v;
  Bf16* model;
  const double *schedule, *squared_norm;
  int64_t count;
  double beta1, beta2, clip;
  float eps, weight_decay;
  uint64_t seed;

  /// A moment as it is stored: rounded to f32, and from there stochastically to bf16.
  __device__ static S stored(double moment, uint32_t word) {
    const auto rounded = static_cast<float>(moment);
    if constexpr (sizeof(S) == 4) {
      return rounded;
    } else {
      const unsigned bits = __float_as_uint(rounded);
      if ((bits & 0x7f800000u) == 0x7f800000u) return __float2bfloat16_rn(rounded);
      return __ushort_as_bfloat16(static_cast<unsigned short>((bits + (word & 0xffffu)) >> 16));
    }
  }

  struct Step {
    double shrink;
    float rate, correction1, correction2;
    uint64_t number;
  };

  template <int n>
  __device__ void at(int64_t i, const Step& step) const {
    float value_[n];
    double g[n], m_[n], v_[n];
    Pack<S, n> new_m, new_v;
    load(value + i, value_);
    load(grad + i, g);
    load(m + i, m_);
    load(v + i, v_);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      // Moments in f64: their rounding to f32, and so the stochastic one, is then the reference's.
      g[j] *= step.shrink;
      m_[j] = beta1 * m_[j] + (1 - beta1) * g[j];
      v_[j] = beta2 * v_[j] + (1 - beta2) * g[j] * g[j];
      const float denominator = sqrtf(static_cast<float>(v_[j]) / step.correction2) + eps;
      const float decayed = value_[j] - step.rate * weight_decay * value_[j];
      value_[j] =
          decayed - step.rate * (static_cast<float>(m_[j]) / step.correction1) / denominator;
      uint32_t word_m = 0, word_v = 0;
      if constexpr (sizeof(S) == 2) {
        const auto words = philox(seed, step.number, static_cast<uint64_t>(i + j));
        word_m = words[0];
        word_v = words[1];
      }
      new_m.at[j] = stored(m_[j], word_m);
      new_v.at[j] = stored(v_[j], word_v);
    }
    store(value + i, value_);
    *reinterpret_cast<Pack<S, n>*>(m + i) = new_m;
    *reinterpret_cast<Pack<S, n>*>(v + i) = new_v;
    if (model) store(model + i, value_);
  }
};

template <int n, class S>
__global__ void __launch_bounds__(kThreads) adamw(Update<S> op) {
  const double squared_norm = *op.squared_norm;
  if (!isfinite(squared_norm)) return;
  typename Update<S>::Step step;
  const double norm = sqrt(squared_norm);
  step.shrink = op.clip > 0 ? fmin(1.0, op.clip / (norm + 1e-6)) : 1.0;
  step.rate = static_cast<float>(op.schedule[0]);
  step.correction1 = static_cast<float>(op.schedule[1]);
  step.correction2 = static_cast<float>(op.schedule[2]);
  step.number = static_cast<uint64_t>(op.schedule[3]);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = first; i < op.count / n; i += stride) op.template at<n>(i * n, step);
  if (n > 1 && first < op.count % n) op.template at<1>(op.count / n * n + first, step);
}

}  // namespace

void CudaBackend::run(const ops::SquaredNorm& op) {
  use_device();
  auto* partial = scratch().take<double>(kNormBlocks);
  const auto sum = [&](auto t) {
    using T = type_of<decltype(t)>;
    squares<<<kNormBlocks, kThreads, 0, stream_>>>(data<T>(op.x), op.x.numel(),
                                                   packs(kPackOf<T>, kPackOf<T>, {op.x}), partial);
  };
  if (op.x.dtype() == Dtype::f64)
    sum(Type<double>{});
  else
    sum(Type<float>{});
  add_squares<<<1, kNormBlocks, 0, stream_>>>(partial, data<double>(op.sum), op.accumulate);
  check_launch("squared_norm");
}

void CudaBackend::run(const ops::AdamW& op) {
  use_device();
  if (op.value.dtype() != Dtype::f32) refuse(op.value.dtype());
  const int64_t count = op.value.numel();
  if (count == 0) return;
  with_activation(op.m.dtype(), [&](auto s) {
    using S = type_of<decltype(s)>;
    with_packs<4>(4, {op.value, op.grad, op.m, op.v, op.model}, [&](auto pack) {
      const int64_t turns = divide_up(std::max<int64_t>(count / pack(), 1), kThreads);
      adamw<pack()><<<blocks(std::min(turns, int64_t{processors_} * 16)), kThreads, 0, stream_>>>(
          Update<S>{data<float>(op.value), data<float>(op.grad), data<S>(op.m), data<S>(op.v),
                    data<Bf16>(op.model), data<double>(op.schedule), data<double>(op.squared_norm),
                    count, op.beta1, op.beta2, op.clip, static_cast<float>(op.eps),
                    static_cast<float>(op.weight_decay), op.seed});
    });
  });
  check_launch("adamw");
}

}  // namespace mixtral::cuda
