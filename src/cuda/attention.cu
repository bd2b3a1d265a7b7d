#include "cuda/attention_flash.h"
#include "cuda/attention_mma.h"
#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/cudnn_attention.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/rope.cuh"
#include "cuda/rope.h"
#include "cuda/status.h"
#include "ops/attention.h"

// Rotary embedding (bound by bandwidth), and the choice between the implementations of attention.
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
  allow_next();
  wait_for_previous();
  const int64_t token = blockIdx.x;
  if (op.positions[token] == ops::kPadding) return;
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
    for (int j = 0; j < n; ++j) sine[j] *= op.sign;
    rotate_pairs(a, b, cosine, sine);
    store(pair, a);
    store(pair + op.half, b);
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

void rotate(const ops::Rope& op, cudaStream_t stream) {
  const int half = op.heads.width / 2;
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    with_packs<kPackOf<T>>(half, {op.qkv, op.table}, [&](auto pack) {
      chain(rope<pack(), T>, dim3(blocks(op.qkv.dim(0))), kThreads, 0, stream,
            Rotation<T>{data<T>(op.qkv), data<int>(op.positions), data<float>(op.table),
                        static_cast<int>(op.qkv.dim(1)), op.heads.query + op.heads.kv, half,
                        op.inverse ? -1.0f : 1.0f});
    });
  });
  check_launch("rope");
}

void CudaBackend::run(const ops::Rope& op) {
  use_device();
  if (op.qkv.dim(0) == 0) return;
  if (may_append(op)) {
    waiting_.rope = op;
    last_ = behind_;
    return;
  }
  rotate(op, stream_);
  chained();
}

void CudaBackend::run(const ops::Attention& op) {
  use_device();
  if (op.qkv.dim(0) == 0) return;
  if (cudnn_->forward(op, scratch(), stream_)) return;
  if (mma_attention(op, stream_)) return;
  flash_attention(op, stream_);
}

void CudaBackend::run(const ops::AttentionBackward& op) {
  use_device();
  if (op.qkv.dim(0) == 0) return;
  if (cudnn_->backward(op, scratch(), stream_)) return;
  if (mma_attention_backward(op, stream_)) return;
  flash_attention_backward(op, stream_);
}

}  // namespace mixtral::cuda
