#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/rows.cuh"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "ops/vocab.h"

// Embedding, its gradient, and the loss over the vocabulary. (Sampling: sample.cu.)
namespace mixtral::cuda {
namespace {

template <class T, class X>
struct Lookup {
  const T* table;
  const int* tokens;
  X* x;
  int width;
  template <int n>
  __device__ void at(int64_t row, int column) const {
    float values[n];
    load(table + int64_t{tokens[row]} * width + column, values);
    store(x + row * width + column, values);
  }
};

__global__ void __launch_bounds__(256) enumerate(int64_t count, int* values) {
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i < count) values[i] = static_cast<int>(i);
}

/// The gradient of the embedding. Tokens are sorted, equal ones in order of position, so that the
/// rows of one token are a run. Tiles of kTile sorted positions are summed side by side; a run that
/// crosses tiles leaves a sum in each, and these are added in order by the tile where it begins.
template <class X>
struct Scatter {
  static constexpr int kTile = 64;

  const X* dx;
  const int *tokens, *rows;  // sorted, and where each was
  float* dtable;
  float *head, *carry;  // [tiles, width]: sums of the run that begins in a tile and goes on, and of
                        // the run that came into it
  int64_t count;
  int width;

  __device__ bool starts_run(int64_t i) const { return i == 0 || tokens[i - 1] != tokens[i]; }

  template <int n>
  __device__ void add_to_table(int token, int column, const float (&sum)[n]) const {
    float* place = dtable + int64_t{token} * width + column;
    float total[n];
    load(place, total);
#pragma unroll
    for (int j = 0; j < n; ++j) total[j] += sum[j];
    store(place, total);
  }
};

template <class X>
struct SumTiles : Scatter<X> {
  template <int n>
  __device__ void at(int64_t tile, int column) const {
    const int64_t begin = tile * this->kTile;
    const int64_t end = min(begin + this->kTile, this->count);
    float sum[n] = {};
    bool came_in = !this->starts_run(begin);
    for (int64_t i = begin; i < end; ++i) {
      float row[n];
      load(this->dx + int64_t{this->rows[i]} * this->width + column, row);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += row[j];
      const bool last = i + 1 == this->count || this->starts_run(i + 1);
      if (!last && i + 1 < end) continue;
      if (came_in)
        store(this->carry + tile * this->width + column, sum);
      else if (last)
        this->add_to_table(this->tokens[i], column, sum);
      else
        store(this->head + tile * this->width + column, sum);
      came_in = false;
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] = 0;
    }
  }
};

template <class X>
struct JoinTiles : Scatter<X> {
  template <int n>
  __device__ void at(int64_t tile, int column) const {
    const int64_t end = (tile + 1) * this->kTile;
    if (end >= this->count || this->starts_run(end)) return;  // no run goes on
    // Does the last run of the tile begin in it?
    const int token = this->tokens[end - 1];
    const int64_t begin = tile * this->kTile;
    if (this->tokens[begin] == token && !this->starts_run(begin)) return;
    float sum[n], part[n];
    load(this->head + tile * this->width + column, sum);
    for (int64_t next = tile + 1; next * this->kTile < this->count; ++next) {
      if (this->tokens[next * this->kTile] != token) break;
      load(this->carry + next * this->width + column, part);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += part[j];
    }
    this->add_to_table(token, column, sum);
  }
};

template <class T, class D>
struct Loss {
  const T* logits;
  const int* labels;
  float* loss;
  const float* scale;
  D* dlogits;
  int width;
  bool one_scale;
};

constexpr int kLoads = 4;  // in flight a thread

/// A block a row. The row is read from memory once, with a running softmax, and again from the
/// cache for its gradient.
template <int n, class T, class D>
__global__ void __launch_bounds__(1024) cross_entropy(Loss<T, D> op) {
  const int64_t row = blockIdx.x;
  const T* logits = op.logits + row * op.width;
  const int label = op.labels[row];
  const bool counts = label != ops::kIgnoredLabel;
  if (!counts && !op.scale) {
    if (threadIdx.x == 0) op.loss[row] = 0;
    return;
  }
  float log_sum = 0;
  if (counts) {
    // The largest value so far, and the sum of exponentials relative to it. A finite start, so that
    // values of −∞ give 0 and not NaN until a larger one comes.
    float mine = -3.0e38f, sum = 0;
    const int stride = static_cast<int>(blockDim.x) * n;
    for (int v = static_cast<int>(threadIdx.x) * n; v < op.width; v += kLoads * stride) {
      Pack<T, n> packs[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (v + i * stride < op.width)
          packs[i] = *reinterpret_cast<const Pack<T, n>*>(logits + v + i * stride);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (v + i * stride >= op.width) break;
        float x[n];
#pragma unroll
        for (int j = 0; j < n; ++j) x[j] = widen<float>(packs[i].at[j]);
        float most = x[0];
#pragma unroll
        for (int j = 1; j < n; ++j) most = fmaxf(most, x[j]);
        if (most > mine) {
          sum *= __expf(mine - most);
          mine = most;
        }
#pragma unroll
        for (int j = 0; j < n; ++j) sum += __expf(x[j] - mine);
      }
    }
    const float largest = block_reduce(mine, Max{});
    const float total = block_sum(sum * __expf(mine - largest));
    log_sum = largest + logf(total);
  }
  if (threadIdx.x == 0) op.loss[row] = counts ? log_sum - widen<float>(logits[label]) : 0.0f;
  if (!op.scale) return;
  __syncthreads();  // the gradient may overwrite the label's logit
  const float factor = counts ? op.scale[op.one_scale ? 0 : row] : 0.0f;
  D* dlogits = op.dlogits + row * op.width;
#pragma unroll kLoads
  for (int v = static_cast<int>(threadIdx.x) * n; v < op.width;
       v += static_cast<int>(blockDim.x) * n) {
    float x[n] = {};
    if (counts) {
      load(logits + v, x);
#pragma unroll
      for (int j = 0; j < n; ++j)
        x[j] = factor * (__expf(x[j] - log_sum) - (v + j == label ? 1.0f : 0.0f));
    }
    store(dlogits + v, x);
  }
}

__global__ void __launch_bounds__(256)
    segment_sum(const float* x, const int* starts, int64_t count, double* y, bool accumulate) {
  const int64_t begin = starts ? starts[blockIdx.x] : 0;
  const int64_t end = starts ? starts[blockIdx.x + 1] : count;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += 256) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = accumulate ? y[blockIdx.x] + sum : sum;
}

}  // namespace

void CudaBackend::run(const ops::Embedding& op) {
  use_device();
  const int64_t width = op.x.dim(1);
  with_weight(op.table.dtype(), [&](auto t) {
    with_activation(op.x.dtype(), [&](auto x) {
      using T = type_of<decltype(t)>;
      using X = type_of<decltype(x)>;
      each_row<kPackOf<X>>("embedding", op.x.dim(0), width, {op.table, op.x}, stream_,
                           Lookup<T, X>{data<T>(op.table), data<int>(op.tokens), data<X>(op.x),
                                        static_cast<int>(width)});
    });
  });
  if (op.x.dim(0) > 0) chained();
}

void CudaBackend::run(const ops::EmbeddingBackward& op) {
  use_device();
  const int64_t count = op.dx.dim(0), width = op.dx.dim(1);
  if (count == 0) return;
  Scratch& room = scratch();
  int* rows = room.take<int>(count);
  int* sorted_rows = room.take<int>(count);
  int* sorted = room.take<int>(count);
  enumerate<<<blocks(divide_up(count, 256)), 256, 0, stream_>>>(count, rows);
  const int bits = std::bit_width(static_cast<uint64_t>(op.dtable.dim(0)));
  size_t bytes = 0;
  const auto sort = [&](void* storage) {
    check_cuda(cub::DeviceRadixSort::SortPairs(storage, bytes, data<int>(op.tokens), sorted, rows,
                                               sorted_rows, count, 0, bits, stream_),
               "embedding_backward");
  };
  sort(nullptr);
  sort(room.take<char>(static_cast<int64_t>(bytes)));
  with_activation(op.dx.dtype(), [&](auto x) {
    using X = type_of<decltype(x)>;
    const int64_t tiles = divide_up(count, Scatter<X>::kTile);
    float* head = room.take<float>(tiles * width);
    float* carry = room.take<float>(tiles * width);
    const Scatter<X> scatter{data<X>(op.dx), sorted, sorted_rows, data<float>(op.dtable),
                             head,           carry,  count,       static_cast<int>(width)};
    each_row<kPackOf<X>>("embedding_backward", tiles, width, {op.dx, op.dtable}, stream_,
                         SumTiles<X>{scatter});
    each_row<kPackOf<X>>("embedding_backward", tiles, width, {op.dx, op.dtable}, stream_,
                         JoinTiles<X>{scatter});
  });
}

void CudaBackend::run(const ops::CrossEntropy& op) {
  use_device();
  const int64_t rows = op.logits.dim(0), width = op.logits.dim(1);
  if (rows == 0) return;
  // Few rows at a time where they are wide, so that the second reading finds them in L2.
  const unsigned threads = op.logits.bytes() / rows > 64 * 1024 ? 1024 : 512;
  const Dtype gradient = op.dlogits ? op.dlogits.dtype() : op.logits.dtype();
  with_activation(op.logits.dtype(), [&](auto t) {
    with_activation(gradient, [&](auto d) {
      using T = type_of<decltype(t)>;
      using D = type_of<decltype(d)>;
      with_packs<kPackOf<T>>(width, {op.logits, op.dlogits}, [&](auto pack) {
        cross_entropy<pack()><<<blocks(rows), threads, 0, stream_>>>(Loss<T, D>{
            data<T>(op.logits), data<int>(op.labels), data<float>(op.loss), data<float>(op.scale),
            data<D>(op.dlogits), static_cast<int>(width), op.scale.numel() == 1});
      });
    });
  });
  check_launch("cross_entropy");
}

void CudaBackend::run(const ops::SegmentSum& op) {
  use_device();
  if (op.x.dtype() != Dtype::f32) refuse(op.x.dtype());
  if (op.y.dim(0) == 0) return;
  segment_sum<<<blocks(op.y.dim(0)), 256, 0, stream_>>>(
      data<float>(op.x), data<int>(op.starts), op.x.dim(0), data<double>(op.y), op.accumulate);
  check_launch("segment_sum");
}

}  // namespace mixtral::cuda
