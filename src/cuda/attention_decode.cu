#include <cuda_pipeline_primitives.h>

#include "cuda/attention_decode.h"
#include "cuda/chain.cuh"
#include "cuda/decode_operands.cuh"
#include "cuda/decode_results.cuh"
#include "cuda/flash.cuh"
#include "cuda/sequences.cuh"
#include "cuda/split_kv.cuh"
#include "cuda/status.h"

// Attention of single tokens over the cache, bound by reading it. A block takes one token, one kv
// head with up to 8 of its query heads, and one split of the keys. Its warps go through tiles of 16
// keys of their own, and meet only at the end.
//
// Where there is one token with few keys, the blocks of a kv head are a cluster. They combine their
// results in shared memory, because a second kernel for that took longer than attention itself.
//
// Each lane copies (cp.async) the bytes of a tile that it multiplies itself. So 12 to 16 KB of keys
// and values are in flight for each warp, without registers and without synchronization.
// The products are transposed, S^T = K q^T and o^T = V^T p^T, so that keys and values are the
// operand of 16 rows and the query heads that of 8 columns; a lane's bytes of a row are neighbours
// in memory, because the order within a sum is free where both factors follow it, and the order of
// o's columns is that of its stores.
//
// Codes of 8 bits become pairs of f16 in registers, exactly. Keys' scales multiply the scores.
// Values' scales go into the weights; so that these are in f16's range, they are relative to the
// largest product of a weight and a scale, instead of to the largest weight. q is divided by a
// power of two for the same reason. In bf16 neither is needed.
namespace mixtral::cuda {
namespace {

constexpr int kTileKeys = 16;           // of a warp
constexpr int kWarps = 4;               // of a block
constexpr int kBlocks = 3;              // of a multiprocessor
constexpr int kClusterWarps = 8;        // of a block of a cluster, which has a multiprocessor alone
constexpr int64_t kClusterKeys = 2560;  // at most; more are read faster by more blocks

/// Bytes of keys and values under way for a warp: as many as leave room for all blocks.
template <class K>
constexpr int kWarpBytes = kIsCode<K> ? 12288 : 16384;

/// A warp's slots: `kStages` tiles of keys and values in heads of `width`.
template <class K, int width>
struct Ring {
  static constexpr int kRow = static_cast<int>(sizeof(K)) * width;  // bytes
  static constexpr int kKeyPieces = kRow / 64;  // of 16 bytes, of a lane, in each of its two keys
  static constexpr int kValueBytes = kRow / 8 < 16 ? kRow / 8 : 16;  // of a piece
  static constexpr int kValuePieces = kRow / (8 * kValueBytes);      // in each of its four values
  static constexpr int kScales = kIsCode<K> ? kWarp * 4 : 0;         // bytes
  static constexpr int kValuesAt = kTileKeys * kRow, kScalesAt = 2 * kValuesAt;
  static constexpr int kStage = kScalesAt + kScales;
  static constexpr int kStages = kWarpBytes<K> / kScalesAt;
  static constexpr int kBytes = kStages * kStage;
};

/// `clustered`: the blocks of all splits of a head are a cluster. `early`: there is one token.
/// Kernels that may still run write its q, key and value, but nothing else that is read here.
template <class K, int width, int warps, bool clustered>
__global__ void __launch_bounds__(warps* kWarp, clustered ? 1 : kBlocks)
    mma_decode(CachedSource<K> op, Splits to, bool early) {
  using R = Ring<K, width>;
  using Found = mixtral::cuda::Found<width>;
  constexpr bool kBf16 = std::is_same_v<K, Bf16>, kCoded = kIsCode<K>;
  constexpr int kElements = 16 / static_cast<int>(sizeof(K));  // of a piece of a key
  constexpr int kValueElements = R::kValueBytes / static_cast<int>(sizeof(K));
  constexpr int kTiles = width / 16;  // of 16 columns of o
  constexpr int kThreads = warps * kWarp;
  constexpr float kLeastLogScale = -60;
  // Copies of fewer than 16 bytes go through the first-level cache. Made early, they could leave a
  // line there that holds the last key as it was before it is written.
  constexpr bool kCopiesEarly = !kCoded && R::kValueBytes == 16;
  extern __shared__ __align__(16) char memory[];
  allow_next();
  if (!early) wait_for_previous();
  if constexpr (clustered) cute::cluster_arrive();
  const int token = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, r = lane / 4, c = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int group = op.heads / op.kv_heads, chunks = (group + kDecodeHeads - 1) / kDecodeHeads;
  const int kv = static_cast<int>(blockIdx.y) / chunks;
  const int first_head = kv * group + static_cast<int>(blockIdx.y) % chunks * kDecodeHeads;
  const int count = min(kDecodeHeads, (kv + 1) * group - first_head);
  const int64_t first_row = int64_t{token} * op.heads + first_head;
  const int last = op.last_seen(token);
  if (last < 0) {  // padding
    if (early) wait_for_previous();
    if constexpr (clustered) cute::cluster_wait();
    if (to.sums || blockIdx.z > 0) return;
    for (int i = static_cast<int>(threadIdx.x); i < count * op.width; i += kThreads)
      to.out.write(first_row * op.width + i, 0);
    return;
  }
  const int sequence = op.sequence(token), first = op.first_seen(token);
  const int split_keys = to.keys(last + 1 - first);
  const int begin = first + static_cast<int>(blockIdx.z) * split_keys;
  const int end = min(begin + split_keys, last + 1);
  if (!clustered && begin >= end) return;

  char* const ring = memory + warp * R::kBytes;
  const char* const keys = reinterpret_cast<const char*>(op.keys(kv));
  const char* const values = reinterpret_cast<const char*>(op.values(kv));
  const int row_bytes = op.width * static_cast<int>(sizeof(K));
  const int tiles = begin < end ? (end - begin + kTileKeys - 1) / kTileKeys : 0;

  // Lanes l and l + 16 know the entry of the tile's key l.
  const auto entry_of = [&](int tile) {
    const int t = begin + tile * kTileKeys + lane % kTileKeys;
    return t < end ? op.place(sequence, t) : -1;
  };
  /// Starts copying a tile to a stage; every lane takes part.
  const auto issue = [&](int entry, int stage) {
    char* const slots = ring + stage * R::kStage;
    const auto copy_row = [&](const char* source, int of_key, int column, auto bytes, char* slot) {
      const bool inside = of_key >= 0 && column < row_bytes;
      const int64_t from =
          inside ? op.offset(of_key) * static_cast<int>(sizeof(K)) + column : int64_t{0};
      __pipeline_memcpy_async(slot, source + from, bytes(), inside ? 0 : bytes());
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_key = __shfl_sync(kAllLanes, entry, r + 8 * half);
#pragma unroll
      for (int p = 0; p < R::kKeyPieces; ++p)
        copy_row(keys, of_key, (p * 4 + c) * 16, std::integral_constant<int, 16>{},
                 slots + ((half * R::kKeyPieces + p) * kWarp + lane) * 16);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int of_key = __shfl_sync(kAllLanes, entry, 2 * c + i % 2 + i / 2 * 8);
#pragma unroll
      for (int p = 0; p < R::kValuePieces; ++p)
        copy_row(
            values, of_key, (p * 8 + r) * R::kValueBytes,
            std::integral_constant<int, R::kValueBytes>{},
            slots + R::kValuesAt + ((i * R::kValuePieces + p) * kWarp + lane) * R::kValueBytes);
    }
    if constexpr (kCoded) {
      const int known = max(entry, 0);
      __pipeline_memcpy_async(
          slots + R::kScalesAt + lane * 4,
          lane < kTileKeys ? op.key_scale(known, kv) : op.value_scale(known, kv), 4,
          entry >= 0 ? 0 : 4);
    }
  };

  int entries[R::kStages];
#pragma unroll
  for (int s = 0; s < R::kStages; ++s) entries[s] = entry_of(warp + s * warps);
  int next_entry = entry_of(warp + R::kStages * warps);
  const auto start = [&](int s) {
    if (warp + s * warps < tiles) issue(entries[s], s);
    __pipeline_commit();
  };
  // Tiles in front of the last key's.
  const int old_tiles = kCopiesEarly && early ? max(0, last - begin) / kTileKeys : 0;
#pragma unroll
  for (int s = 0; s < R::kStages; ++s)
    if (warp + s * warps < old_tiles) start(s);
  if (early) wait_for_previous();
#pragma unroll
  for (int s = 0; s < R::kStages; ++s)
    if (warp + s * warps >= old_tiles) start(s);
  const Query<K, width> query(op, token, first_head, count);

  // Of heads 2c and 2c + 1, and of the total a lane's part (see Found).
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  float sums[kTiles][4] = {};  // columns row(t) and row(t) + 1 of head 2c, 2c + 1; see below
  int stage = 0;
  for (int tile = warp; tile < tiles; tile += warps) {
    wait_for_oldest<R::kStages>();
    char* const slots = ring + stage * R::kStage;
    // Of keys r (head 2c, 2c + 1) and r + 8; two chains of products.
    float scores[4] = {}, odd_scores[4] = {};
#pragma unroll
    for (int p = 0; p < R::kKeyPieces; ++p) {
      Words<16> rows[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        rows[half] = *reinterpret_cast<const Words<16>*>(
            slots + ((half * R::kKeyPieces + p) * kWarp + lane) * 16);
#pragma unroll
      for (int s = 0; s < kElements / 4; ++s) {
        uint32_t a[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if constexpr (kCoded) {
            const uint2 pairs = pairs_of_codes<K>(rows[half].at[s]);
            a[half] = pairs.x;
            a[2 + half] = pairs.y;
          } else {
            a[half] = rows[half].at[2 * s];
            a[2 + half] = rows[half].at[2 * s + 1];
          }
        }
        const auto& q = query.pair[p * (kElements / 4) + s];
        multiply_tile<kBf16>(s % 2 == 0 ? scores : odd_scores, a, q[0], q[1]);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[e] += odd_scores[e];

    float key_scale[2] = {1, 1}, value_scale[2] = {1, 1}, log_scale[2] = {0, 0};
    if constexpr (kCoded) {
      const float scale = *reinterpret_cast<const float*>(slots + R::kScalesAt + lane * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        key_scale[half] = __shfl_sync(kAllLanes, scale, r + 8 * half);
        value_scale[half] = __shfl_sync(kAllLanes, scale, kTileKeys + r + 8 * half);
        log_scale[half] = fmaxf(log2_fast(value_scale[half]), kLeastLogScale);
      }
    }
    float shrink[2];
    uint32_t weights[2];  // of the two keys, for heads 2c and 2c + 1
    {
      float w[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float score[2], most = largest[i];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const bool seen = begin + tile * kTileKeys + r + 8 * half < end;
          score[half] = seen ? scores[2 * half + i] * query.factor[i] * key_scale[half] : -INFINITY;
          most = fmaxf(most, score[half] + log_scale[half]);
        }
#pragma unroll
        for (int step = 4; step < kWarp; step *= 2)
          most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
        const float base = most == -INFINITY ? 0.0f : most;
        shrink[i] = exp2_fast(largest[i] - base);
        largest[i] = most;
        total[i] *= shrink[i];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float p = exp2_fast(score[half] - base);
          total[i] += p;
          w[half][i] = kCoded ? p * value_scale[half] : p;
        }
      }
      weights[0] = transpose(pack_pair<kBf16>(w[0][0], w[0][1]));
      weights[1] = transpose(pack_pair<kBf16>(w[1][0], w[1][1]));
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[t][e] *= shrink[e % 2];

    // A lane's values: of keys 2c, 2c + 1, 2c + 8 and 2c + 9, columns in pieces. A pair of
    // neighbouring columns is rows r and r + 8 of a tile of o.
#pragma unroll
    for (int p = 0; p < R::kValuePieces; ++p) {
      Words<R::kValueBytes> rows[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        rows[i] = *reinterpret_cast<const Words<R::kValueBytes>*>(
            slots + R::kValuesAt + ((i * R::kValuePieces + p) * kWarp + lane) * R::kValueBytes);
#pragma unroll
      for (int word = 0; word < R::kValueBytes / 4; ++word) {
        const int t = p * (kValueElements / 2) + word * (kCoded ? 2 : 1);
        const auto mix = [&](int pair, unsigned selector) {
          return __byte_perm(rows[2 * pair].at[word], rows[2 * pair + 1].at[word], selector);
        };
        if constexpr (kCoded) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned selector = half == 0 ? 0x5140 : 0x7362;
            const uint2 near = pairs_of_codes<K>(mix(0, selector));
            const uint2 far = pairs_of_codes<K>(mix(1, selector));
            const uint32_t a[4] = {near.x, near.y, far.x, far.y};
            multiply_tile<kBf16>(sums[t + half], a, weights[0], weights[1]);
          }
        } else {
          const uint32_t a[4] = {mix(0, 0x5410), mix(0, 0x7632), mix(1, 0x5410), mix(1, 0x7632)};
          multiply_tile<kBf16>(sums[t], a, weights[0], weights[1]);
        }
      }
    }
    // All of the stage is in registers by now.
    if (tile + R::kStages * warps < tiles) issue(next_entry, stage);
    __pipeline_commit();
    next_entry = entry_of(tile + (R::kStages + 1) * warps);
    stage = stage + 1 == R::kStages ? 0 : stage + 1;
  }

  // Each warp puts down what it found, in the place of its slots.
  static_assert(sizeof(Found) <= R::kBytes && R::kBytes % 16 == 0);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int step = 4; step < kWarp; step *= 2)
      total[i] += __shfl_xor_sync(kAllLanes, total[i], step);
  __syncwarp();
  auto& own = *reinterpret_cast<Found*>(ring);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (r == 0) own.largest[2 * c + i] = largest[i];
    if (r == 0) own.total[2 * c + i] = total[i];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int piece = t / (kValueElements / 2), pair = t % (kValueElements / 2);
      const int column = (piece * 8 + r) * kValueElements + 2 * pair;
      own.sums[2 * c + i][column] = sums[t][i];
      own.sums[2 * c + i][column + 1] = sums[t][2 + i];
    }
  }
  __syncthreads();
  const WarpsFound<width, warps> found{memory, R::kBytes};
  if constexpr (clustered)
    combine_in_cluster(found, to, to.used(last + 1 - first), count, op.width, first_row);
  else
    leave_results(found, to, count, op.width, first_row);
}

template <class K, int width>
void launch(const ops::CachedAttention& op, int processors, bool early, Scratch& scratch,
            cudaStream_t stream) {
  const auto source = cached_source<K>(op);
  const int64_t tokens = op.qkv.dim(0), context = op.cache.context();
  const int64_t grid_heads = op.heads.kv * divide_up(op.heads.query / op.heads.kv, kDecodeHeads);
  const auto run = [&](auto kernel, auto warps, const Splits& to, unsigned cluster) {
    constexpr size_t kBytes = warps() * Ring<K, width>::kBytes;
    allow_shared(kernel, kBytes, "cached_attention");
    chain_clusters(kernel, dim3(blocks(tokens), blocks(grid_heads), blocks(to.splits)), cluster,
                   warps() * kWarp, kBytes, stream, source, to, early);
  };
  const int64_t seen = op.window > 0 ? std::min(op.window, context) : context;
  const int64_t splits = std::min<int64_t>(divide_up(seen, kLeastSplitKeys), kCluster);
  // Not all multiprocessors have a place in some cluster.
  if (splits > 1 && seen <= kClusterKeys && tokens * grid_heads * splits <= processors * 3 / 4) {
    const Splits to = {
        {op.out.data(), op.out.dtype() == Dtype::bf16}, nullptr, nullptr, static_cast<int>(splits)};
    const std::integral_constant<int, kClusterWarps> warps;
    return run(mma_decode<K, width, kClusterWarps, true>, warps, to, static_cast<unsigned>(splits));
  }
  const Splits to = split_keys(op, grid_heads, int64_t{processors} * kBlocks, scratch);
  const std::integral_constant<int, kWarps> warps;
  run(mma_decode<K, width, kWarps, false>, warps, to, 1);
  if (to.sums) launch_combine(source, to, stream);
}

}  // namespace

bool mma_decode_attention(const ops::CachedAttention& op, int processors, bool early,
                          Scratch& scratch, cudaStream_t stream) {
  const bool takes = op.qkv.dtype() == Dtype::bf16 && op.heads.width % 16 == 0 &&
                     op.heads.width <= 128 && packs(8, op.heads.width, {op.qkv}) &&
                     has_aligned_rows(op.cache, op.heads);
  if (!takes) return false;
  const auto run = [&](auto k) {
    using K = type_of<decltype(k)>;
    if (op.heads.width <= 64)
      launch<K, 64>(op, processors, early, scratch, stream);
    else
      launch<K, 128>(op, processors, early, scratch, stream);
    return true;
  };
  switch (op.cache.type) {
    case ops::CacheType::bf16:
      return run(Type<Bf16>{});
    case ops::CacheType::f16:
      return run(Type<Half>{});
    case ops::CacheType::int8:
      return run(Type<Int8Code>{});
    case ops::CacheType::fp8:
      return run(Type<Fp8Code>{});
    default:
      return false;
  }
}

}  // namespace mixtral::cuda
