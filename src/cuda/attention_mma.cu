#include "cuda/attention_mma.h"
#include "cuda/attention_runs.cuh"
#include "cuda/flash.cuh"
#include "cuda/mma.cuh"
#include "cuda/sequences.cuh"

// Attention in blocks on tensor cores (Dao 2023, "FlashAttention-2"). A block of four warps has 128
// queries of one head, 32 a warp, and walks over tiles of 64 keys, the next one's copy under way
// while this one is multiplied. A cache's codes are copied as they are, and each tile of them is
// unpacked to bf16 once in shared memory.
namespace mixtral::cuda {
namespace {

constexpr int kKeys = 64, kRowsOfWarp = 32, kPieces = kRowsOfWarp / 16;

/// Keys and values of a tile as they come from memory, two tiles in turn: numbers as they are
/// multiplied.
template <int width, class K>
struct Fetched {
  MmaTile<kKeys, width> k[2], v[2];

  template <class Source>
  __device__ void fetch(const Source& op, int kv, int sequence, int begin, int first, int count,
                        int stage) {
    fetch_rows(k[stage], op.keys(kv), v[stage], op.values(kv), count, op.width,
               [&](int r) { return op.offset(op.place(sequence, max(begin + r, first))); });
  }
  __device__ void unpack(int) {}
  __device__ const auto& keys(int stage) const { return k[stage]; }
  __device__ const auto& values(int stage) const { return v[stage]; }
};

/// Codes with their scales, unpacked to bf16 when they are there.
template <int width, class K>
  requires kIsCode<K>
struct Fetched<width, K> {
  struct Codes {
    alignas(16) K k[kKeys * width], v[kKeys * width];
    float k_scale[kKeys], v_scale[kKeys];
  };
  MmaTile<kKeys, width> k, v;
  Codes codes[2];

  template <class Source>
  __device__ void fetch(const Source& op, int kv, int sequence, int begin, int first, int count,
                        int stage) {
    constexpr int kChunks = width / 16;
    Codes& to = codes[stage];
    const auto place = [&](int r) { return op.place(sequence, max(begin + r, first)); };
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kMmaThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const bool inside = r < count && c * 16 < op.width;
      const int64_t from = op.offset(place(inside ? r : 0)) + (inside ? c * 16 : 0);
      __pipeline_memcpy_async(to.k + i * 16, op.keys(kv) + from, 16, inside ? 0 : 16);
      __pipeline_memcpy_async(to.v + i * 16, op.values(kv) + from, 16, inside ? 0 : 16);
    }
    static_assert(kMmaThreads == 2 * kKeys);
    const int r = static_cast<int>(threadIdx.x) % kKeys;
    const bool inside = r < count, of_keys = threadIdx.x < kKeys;
    const int entry = place(inside ? r : 0);
    __pipeline_memcpy_async((of_keys ? to.k_scale : to.v_scale) + r,
                            of_keys ? op.key_scale(entry, kv) : op.value_scale(entry, kv), 4,
                            inside ? 0 : 4);
  }
  __device__ void unpack(int stage) {
    constexpr int kChunks = width / 8;
    const Codes& from = codes[stage];
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kMmaThreads) {
      const int r = i / kChunks, c = i % kChunks;
      unpack_chunk(from.k + i * 8, from.k_scale[r], k.chunk(r, c));
      unpack_chunk(from.v + i * 8, from.v_scale[r], v.chunk(r, c));
    }
    __syncthreads();
  }
  static __device__ void unpack_chunk(const K* from, float scale, Bf16* to) {
    float x[8];
    load(from, x);
    uint4 words;
    words.x = pack_bf16(x[0] * scale, x[1] * scale);
    words.y = pack_bf16(x[2] * scale, x[3] * scale);
    words.z = pack_bf16(x[4] * scale, x[5] * scale);
    words.w = pack_bf16(x[6] * scale, x[7] * scale);
    *reinterpret_cast<uint4*>(to) = words;
  }
  __device__ const auto& keys(int) const { return k; }
  __device__ const auto& values(int) const { return v; }
};

template <int width, class K>
struct Shared : Seen {
  MmaTile<kQueries, width> q;
  Fetched<width, K> fetched;
};

template <int width, class K, class Source>
__global__ void __launch_bounds__(kMmaThreads, 2)
    mma_forward(Source op, Bf16* out, float* log_sum) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<Shared<width, K>*>(memory);
  // The last tiles see the most keys: start with them.
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int head = static_cast<int>(blockIdx.y), kv = head / (op.heads / op.kv_heads);
  const int count = min(kQueries, op.tokens - begin);
  const int first_row = static_cast<int>(threadIdx.x) / kWarp * kRowsOfWarp;

  shared.q.fetch(count, op.width, [&](int r) { return op.query(begin + r, head); });
  __pipeline_commit();
  shared.read(op, begin, count);
  __syncthreads();

  using Scores = Accumulator<kPieces, kKeys / 8>;
  Accumulator<kPieces, width / 8> sums;
  sums.clear();
  // Of rows row(i, 0) and row(i, 2): the largest score (times scale and log2 e), and the sum of
  // exponentials, of which each thread has a part.
  float largest[kPieces][2], total[kPieces][2];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    largest[i][0] = largest[i][1] = -INFINITY;
    total[i][0] = total[i][1] = 0;
  }
  const float scale = op.scale * kLog2E;

  for (int row = 0; row < count;) {
    const Run run = run_from(shared, row, count);
    row = run.end;
    if (run.last < run.first) continue;  // padding only
    const auto fetch = [&](int t, int stage) {
      const int keys = min(kKeys, run.last + 1 - t);
      shared.fetched.fetch(op, kv, run.sequence, t, run.first, keys, stage);
      __pipeline_commit();
    };
    __syncthreads();  // the tiles of the run before are no longer read
    const int begin_key = op.first_key(run.first, kKeys);
    fetch(begin_key, 0);
    for (int t = begin_key, stage = 0; t <= run.last; t += kKeys, stage ^= 1) {
      if (t + kKeys <= run.last)
        fetch(t + kKeys, stage ^ 1);
      else
        __pipeline_commit();
      __pipeline_wait_prior(1);
      __syncthreads();
      shared.fetched.unpack(stage);
      Scores scores;
      scores.clear();
      multiply_rows(shared.q, first_row, shared.fetched.keys(stage), scores);
      const bool whole = run.begin == 0 && run.end == count && t >= run.whole_first &&
                         t + kKeys - 1 <= run.whole_last;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = first_row + Scores::row(i, 2 * half);
          float most = largest[i][half];
          if (!whole) {
            const bool inside = r >= run.begin && r < run.end;
            const int first = inside ? shared.first[r] : 0, last = inside ? shared.last[r] : -1;
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
              for (int e = 2 * half; e < 2 * half + 2; ++e) {
                const int key = t + Scores::column(j, e);
                if (key < first || key > last) scores.at[i][j][e] = -INFINITY;
              }
          }
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
              scores.at[i][j][e] *= scale;
              most = fmaxf(most, scores.at[i][j][e]);
            }
          most = warp_reduce<4>(most, Max{});
          // A row that has seen no key yet stays at −∞; its exponentials must not become NaN.
          const float base = most == -INFINITY ? 0.0f : most;
          const float shrink = exp2_fast(largest[i][half] - base);
          largest[i][half] = most;
          float sum = 0;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
              scores.at[i][j][e] = exp2_fast(scores.at[i][j][e] - base);
              sum += scores.at[i][j][e];
            }
          total[i][half] = total[i][half] * shrink + sum;
#pragma unroll
          for (int j = 0; j < width / 8; ++j)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) sums.at[i][j][e] *= shrink;
        }
      }
      multiply_columns(scores, shared.fetched.values(stage), sums);
      __syncthreads();
    }
    __pipeline_wait_prior(0);
  }

#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + Scores::row(i, 2 * half);
      const float all = warp_sum<4>(total[i][half]);
      if (r >= count) continue;
      const float divisor = all == 0 ? 1.0f : all;  // 0: padding, whose sums are 0, too
      const int64_t place = int64_t{begin + r} * op.heads + head;
#pragma unroll
      for (int j = 0; j < width / 8; ++j) {
        const int column = Scores::column(j, 0);
        if (column < op.width)
          *reinterpret_cast<unsigned*>(out + place * op.width + column) =
              pack_bf16(sums.at[i][j][2 * half] / divisor, sums.at[i][j][2 * half + 1] / divisor);
      }
      if (log_sum && threadIdx.x % 4 == 0) log_sum[place] = (largest[i][half] + log2f(all)) * kLn2;
    }
  }
}

template <class K, class Source>
void launch(const char* name, const Source& source, Bf16* out, float* log_sum,
            cudaStream_t stream) {
  const dim3 grid(blocks(divide_up(source.tokens, kQueries)), blocks(source.heads));
  const auto run = [&](auto width) {
    constexpr size_t kBytes = sizeof(Shared<width(), K>);
    const auto kernel = mma_forward<width(), K, Source>;
    allow_shared(kernel, kBytes, name);
    kernel<<<grid, kMmaThreads, kBytes, stream>>>(source, out, log_sum);
  };
  if (source.width <= 64)
    run(std::integral_constant<int, 64>{});
  else
    run(std::integral_constant<int, 128>{});
  check_launch(name);
}

bool takes(const ops::Heads& heads, std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    if (tensor.dtype() != Dtype::bf16 || reinterpret_cast<uintptr_t>(tensor.data()) % 16 != 0)
      return false;
  return heads.width % 8 == 0 && heads.width <= 128;
}

}  // namespace

bool mma_attention(const ops::Attention& op, cudaStream_t stream) {
  if (!takes(op.heads, {op.qkv, op.out})) return false;
  launch<Bf16>("attention", packed_source<Bf16>(op), data<Bf16>(op.out), data<float>(op.log_sum),
               stream);
  return true;
}

bool mma_cached_attention(const ops::CachedAttention& op, cudaStream_t stream) {
  const auto run = [&](auto k) {
    using K = type_of<decltype(k)>;
    launch<K>("cached_attention", cached_source<K>(op), data<Bf16>(op.out), nullptr, stream);
    return true;
  };
  if (!takes(op.heads, {op.qkv, op.out}) || !has_aligned_rows(op.cache, op.heads)) return false;
  if (op.cache.type == ops::CacheType::int8) return run(Type<Int8Code>{});
  if (op.cache.type == ops::CacheType::fp8) return run(Type<Fp8Code>{});
  return op.cache.type == ops::CacheType::bf16 && run(Type<Bf16>{});
}

}  // namespace mixtral::cuda
