#include "cuda/attention_flash.h"
#include "cuda/attention_mma.h"
#include "cuda/backend.h"
#include "cuda/cudnn_attention.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"
#include "ops/attention.h"

// Rotary embedding and writing to the cache (bound by bandwidth), and the choice between the
// implementations of attention.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Rotation {
  T* qkv;
  const int* positions;
  const float* table;
  int columns, heads, half;  // heads: of queries and keys
  float sign;
};

/// A block a token; a thread takes packs of pairs.
template <int n, class T>
__global__ void __launch_bounds__(kThreads) rope(Rotation<T> op) {
  const int64_t token = blockIdx.x;
  const float* cosines = op.table + int64_t{op.positions[token]} * 2 * op.half;
  const int packs = op.half / n;
  for (int i = static_cast<int>(threadIdx.x); i < op.heads * packs; i += kThreads) {
    const int column = i % packs * n;
    T* pair = op.qkv + token * op.columns + i / packs * 2 * op.half + column;
    float a[n], b[n], cosine[n], sine[n];
    load(pair, a);
    load(pair + op.half, b);
    load(cosines + column, cosine);
    load(cosines + op.half + column, sine);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float s = sine[j] * op.sign, before = a[j];
      a[j] = before * cosine[j] - b[j] * s;
      b[j] = b[j] * cosine[j] + before * s;
    }
    store(pair, a);
    store(pair + op.half, b);
  }
}

template <class T, class K>
struct Append {
  const T* qkv;
  const int *positions, *slots;
  K *keys, *values;
  int columns, query_columns, kv_columns, capacity;
};

/// A block a token.
template <int n, class T, class K>
__global__ void __launch_bounds__(kThreads) cache_append(Append<T, K> op) {
  const int64_t token = blockIdx.x;
  const int64_t place =
      (int64_t{op.slots[token]} * op.capacity + op.positions[token] % op.capacity) * op.kv_columns;
  const T* key = op.qkv + token * op.columns + op.query_columns;
  for (int c = static_cast<int>(threadIdx.x) * n; c < op.kv_columns; c += kThreads * n) {
    float x[n];
    load(key + c, x);
    store(op.keys + place + c, x);
    load(key + op.kv_columns + c, x);
    store(op.values + place + c, x);
  }
}

/// A block an inner head of a sequence.
__global__ void __launch_bounds__(kThreads)
    arrange(const float* from, int64_t inner_sequences, int64_t length, int64_t heads,
            int64_t inner_heads, float* to) {
  const int64_t head = blockIdx.x, sequence = blockIdx.y;
  const int64_t outer = sequence / inner_sequences * (heads / inner_heads) + head / inner_heads;
  to +=
      ((outer * inner_sequences + sequence % inner_sequences) * inner_heads + head % inner_heads) *
      length;
  for (int64_t t = threadIdx.x; t < length; t += kThreads)
    to[t] = from[(sequence * length + t) * heads + head];
}

}  // namespace

void arrange_statistics(const float* from, int64_t sequences, int64_t inner_sequences,
                        int64_t length, int64_t heads, int64_t inner_heads, float* to,
                        cudaStream_t stream) {
  arrange<<<dim3(blocks(heads), blocks(sequences)), kThreads, 0, stream>>>(
      from, inner_sequences, length, heads, inner_heads, to);
  check_launch("attention_backward");
}

void CudaBackend::run(const ops::Rope& op) {
  const int64_t tokens = op.qkv.dim(0);
  if (tokens == 0) return;
  const int half = op.heads.width / 2;
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    with_packs<kPackOf<T>>(half, {op.qkv, op.table}, [&](auto pack) {
      rope<pack()><<<blocks(tokens), kThreads, 0, stream_>>>(
          Rotation<T>{data<T>(op.qkv), data<int>(op.positions), data<float>(op.table),
                      static_cast<int>(op.qkv.dim(1)), op.heads.query + op.heads.kv, half,
                      op.inverse ? -1.0f : 1.0f});
    });
  });
  check_launch("rope");
}

void CudaBackend::run(const ops::CacheAppend& op) {
  const int64_t tokens = op.qkv.dim(0);
  if (tokens == 0) return;
  const int kv_columns = op.heads.kv * op.heads.width;
  with_activation(op.qkv.dtype(), [&](auto t) {
    with_weight(op.keys.dtype(), [&](auto k) {
      using T = type_of<decltype(t)>;
      using K = type_of<decltype(k)>;
      // Keys and values begin at multiples of the head width in a packed row.
      with_packs<8>(op.heads.width, {op.qkv, op.keys, op.values}, [&](auto pack) {
        cache_append<pack()><<<blocks(tokens), kThreads, 0, stream_>>>(Append<T, K>{
            data<T>(op.qkv), data<int>(op.positions), data<int>(op.slots), data<K>(op.keys),
            data<K>(op.values), static_cast<int>(op.qkv.dim(1)), op.heads.query * op.heads.width,
            kv_columns, static_cast<int>(op.keys.dim(1))});
      });
    });
  });
  check_launch("cache_append");
}

void CudaBackend::run(const ops::Attention& op) {
  if (op.qkv.dim(0) == 0) return;
  if (cudnn_->forward(op, scratch(), stream_)) return;
  if (mma_attention(op, stream_)) return;
  flash_attention(op, stream_);
}

void CudaBackend::run(const ops::AttentionBackward& op) {
  if (op.qkv.dim(0) == 0) return;
  if (cudnn_->backward(op, scratch(), stream_)) return;
  if (mma_attention_backward(op, stream_)) return;
  flash_attention_backward(op, stream_);
}

}  // namespace mixtral::cuda
