#include <array>
#include <cmath>

#include "base/random.h"
#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"
#include "ops/elementwise.h"

// One pass over memory each, 16 bytes a thread and access; bound by bandwidth.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 256;

/// Calls body.at<n>(i) for packs of n elements that cover [0, count), and body.at<1>(i) for the
/// rest that do not fill one.
template <int n, class Body>
__global__ void __launch_bounds__(kThreads) each(int64_t count, Body body) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = first; i < count / n; i += stride) body.template at<n>(i * n);
  if (n > 1 && first < count % n) body.template at<1>(count / n * n + first);
}

template <int n, class Body>
void launch(const char* op, int64_t count, std::initializer_list<Tensor> tensors, int processors,
            cudaStream_t stream, const Body& body) {
  if (count == 0) return;
  with_packs<n>(n, tensors, [&](auto pack) {
    const int64_t packs = std::max<int64_t>(count / pack(), 1);
    const int64_t most = int64_t{processors} * 32;
    each<pack()>
        <<<blocks(std::min(divide_up(packs, kThreads), most)), kThreads, 0, stream>>>(count, body);
  });
  check_launch(op);
}

template <class T>
struct FillBody {
  T* x;
  T value;
  template <int n>
  __device__ void at(int64_t i) const {
    Pack<T, n> pack;
#pragma unroll
    for (int j = 0; j < n; ++j) pack.at[j] = value;
    *reinterpret_cast<Pack<T, n>*>(x + i) = pack;
  }
};

template <class T>
void fill(const Tensor& x, T value, int processors, cudaStream_t stream) {
  launch<kPackOf<T>>("fill", x.numel(), {x}, processors, stream,
                     FillBody<T>{static_cast<T*>(x.data()), value});
}

/// What sums of A and B elements are computed in.
template <class A, class B>
using Arithmetic = std::conditional_t<sizeof(A) == 8 || sizeof(B) == 8, double, float>;

template <class X, class Y>
struct ConvertBody {
  const X* x;
  Y* y;
  template <int n>
  __device__ void at(int64_t i) const {
    Arithmetic<X, Y> values[n];
    load(x + i, values);
    store(y + i, values);
  }
};

template <class X, class Y>
struct AddScaledBody {
  using A = Arithmetic<X, Y>;
  const X* x;
  Y* y;
  A scale;
  template <int n>
  __device__ void at(int64_t i) const {
    A added[n], values[n];
    load(x + i, added);
    load(y + i, values);
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] += scale * added[j];
    store(y + i, values);
  }
};

/// In f64, so that the numbers are the reference's to the last bit almost always.
template <class T>
struct RandomNormalBody {
  T* x;
  uint64_t seed, stream;
  double deviation;
  template <int n>
  __device__ void at(int64_t i) const {
    double values[n];
    std::array<uint32_t, 4> words{};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const auto element = static_cast<uint64_t>(i + j);
      const bool odd = n % 2 == 0 ? j % 2 != 0 : element % 2 != 0;
      if (n % 2 != 0 || !odd) words = philox(seed, stream, element / 2);
      const auto a = static_cast<double>(unit_float_open(odd ? words[2] : words[0]));
      const auto b = static_cast<double>(unit_float(odd ? words[3] : words[1]));
      values[j] = deviation * sqrt(-2 * log(a)) * cospi(2 * b);
    }
    store(x + i, values);
  }
};

template <class T>
struct DropoutBody {
  const T* x;
  T* y;
  const int64_t* seed;
  uint64_t stream;
  double probability;
  float scale;
  template <int n>
  __device__ void at(int64_t i) const {
    float values[n];
    load(x + i, values);
    const auto key = static_cast<uint64_t>(*seed);
    std::array<uint32_t, 4> words{};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const auto element = static_cast<uint64_t>(i + j);
      // Packs begin at multiples of 4: one draw serves all of them.
      const int which = n == 4 ? j : static_cast<int>(element % 4);
      if (n != 4 || j == 0) words = philox(key, stream, element / 4);
      const uint32_t word = which == 0   ? words[0]
                            : which == 1 ? words[1]
                            : which == 2 ? words[2]
                                         : words[3];
      const bool kept = static_cast<double>(unit_float(word)) >= probability;
      values[j] = kept ? values[j] * scale : 0.0f;
    }
    store(y + i, values);
  }
};

}  // namespace

void CudaBackend::run(const ops::Fill& op) {
  use_device();
  if (op.x.numel() == 0) return;
  if (op.value == 0 && !std::signbit(op.value)) {
    check_cuda(cudaMemsetAsync(op.x.data(), 0, static_cast<size_t>(op.x.bytes()), stream_), "fill");
    return;
  }
  switch (op.x.dtype()) {
    case Dtype::f64:
      return fill(op.x, op.value, processors_, stream_);
    case Dtype::f32:
      return fill(op.x, static_cast<float>(op.value), processors_, stream_);
    case Dtype::bf16:
      return fill(op.x, bf16(static_cast<float>(op.value)).bits, processors_, stream_);
    case Dtype::f16:
      return fill(op.x, f16(static_cast<float>(op.value)).bits, processors_, stream_);
    case Dtype::i64:
      return fill(op.x, static_cast<int64_t>(op.value), processors_, stream_);
    case Dtype::i32:
      return fill(op.x, static_cast<int32_t>(op.value), processors_, stream_);
    case Dtype::u8:
      return fill(op.x, static_cast<uint8_t>(op.value), processors_, stream_);
  }
}

void CudaBackend::run(const ops::Convert& op) {
  use_device();
  if (op.x.dtype() == op.y.dtype()) {
    check_cuda(cudaMemcpyAsync(op.y.data(), op.x.data(), static_cast<size_t>(op.x.bytes()),
                               cudaMemcpyDeviceToDevice, stream_),
               "convert");
    return;
  }
  with_float(op.x.dtype(), [&](auto x) {
    with_float(op.y.dtype(), [&](auto y) {
      using X = type_of<decltype(x)>;
      using Y = type_of<decltype(y)>;
      if constexpr (!std::is_same_v<X, Y>)
        launch<8>("convert", op.x.numel(), {op.x, op.y}, processors_, stream_,
                  ConvertBody<X, Y>{data<X>(op.x), data<Y>(op.y)});
    });
  });
}

void CudaBackend::run(const ops::AddScaled& op) {
  use_device();
  with_float(op.x.dtype(), [&](auto x) {
    with_float(op.y.dtype(), [&](auto y) {
      using X = type_of<decltype(x)>;
      using Y = type_of<decltype(y)>;
      launch<4>("add_scaled", op.x.numel(), {op.x, op.y}, processors_, stream_,
                AddScaledBody<X, Y>{data<X>(op.x), data<Y>(op.y),
                                    static_cast<Arithmetic<X, Y>>(op.scale)});
    });
  });
}

void CudaBackend::run(const ops::RandomNormal& op) {
  use_device();
  with_float(op.x.dtype(), [&](auto x) {
    using T = type_of<decltype(x)>;
    launch<2>("random_normal", op.x.numel(), {op.x}, processors_, stream_,
              RandomNormalBody<T>{data<T>(op.x), op.seed, op.stream, op.deviation});
  });
}

void CudaBackend::run(const ops::Dropout& op) {
  use_device();
  with_activation(op.x.dtype(), [&](auto x) {
    using T = type_of<decltype(x)>;
    launch<4>("dropout", op.x.numel(), {op.x, op.y}, processors_, stream_,
              DropoutBody<T>{data<T>(op.x), data<T>(op.y), data<int64_t>(op.seed), op.stream,
                             op.probability, static_cast<float>(1 / (1 - op.probability))});
  });
}

}  // namespace mixtral::cuda
