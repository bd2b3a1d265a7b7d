#include <cuda_pipeline_primitives.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <cute/arch/copy_sm90_tma.hpp>
#include <type_traits>

#include "cuda/aligned.h"
#include "cuda/attention_runs.cuh"
#include "cuda/attention_wgmma.h"
#include "cuda/flash.cuh"
#include "cuda/tensor_map.h"
#include "cuda/wgmma.cuh"

// Attention of prompts on Hopper's tensor cores (Shah et al. 2024, "FlashAttention-3"). A block has
// 128 queries of one head. One producer thread loads tiles of 128 keys and values from the cache's
// pages by TMA; two consumer warpgroups, with 64 queries each, multiply them by wgmma. A consumer
// issues the scores of the next tile and then the product with this tile's values, which runs while
// it computes the next tile's softmax.
namespace mixtral::cuda {
namespace {

namespace gmma = cute::SM90::GMMA;
using Barrier = cutlass::arch::ClusterBarrier;
using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

constexpr auto kCacheHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

constexpr int kKeys = 128;  // of a tile
constexpr int kStages = 2;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = kWarpgroup * (1 + kConsumers);
constexpr int kRows = kQueries / kConsumers;
static_assert(kKeys == kQueries);
constexpr int kBoxBytes = kKeys * kRowBytes;  // of 64 columns of a tile

/// The rows of a tile, in boxes of 64 columns.
template <int width>
struct TileBoxes {
  alignas(1024) uint8_t at[width / 64][kBoxBytes];

  /// Starts this thread's copies of `count` rows; the rest becomes 0.
  template <class Row>
  __device__ void fetch(int count, const Row& source) {
    constexpr int kChunks = width / 8;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kQueries * kChunks; i += kThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const bool inside = r < count;
      __pipeline_memcpy_async(at[c / 8] + swizzled(r, c % 8), source(inside ? r : 0) + c * 8, 16,
                              inside ? 0 : 16);
    }
  }
};

/// [tokens of all pages, heads · width] of one layer.
struct CacheMaps {
  CUtensorMap keys, values;
};

template <int width>
struct Shared {
  TileBoxes<width> q, k[kStages], v[kStages];
  Seen seen;
  uint64_t full_k[kStages], empty_k[kStages], full_v[kStages], empty_v[kStages];
};

/// The tiles of keys that a block's queries see, run by run.
template <class Source>
class KeyTiles {
 public:
  __device__ KeyTiles(const Source& op, const Seen& seen, int count)
      : op_(op), seen_(seen), count_(count) {}

  /// Goes on to the next one; false at the end.
  __device__ bool next() {
    t_ += kKeys;
    while (t_ > run_.last) {
      if (run_.end >= count_) return false;
      run_ = run_from(seen_, run_.end, count_);
      // Padding alone sees no key.
      t_ = run_.last < run_.first ? 0 : op_.first_key(run_.first, kKeys);
    }
    return true;
  }
  __device__ const Run& run() const { return run_; }
  __device__ int first_key() const { return t_; }
  __device__ int valid_keys() const { return min(kKeys, run_.last + 1 - t_); }
  /// Whether every row sees every key.
  __device__ bool whole() const {
    return run_.begin == 0 && run_.end == count_ && t_ >= run_.whole_first &&
           t_ + kKeys - 1 <= run_.whole_last;
  }

 private:
  const Source& op_;
  const Seen& seen_;
  int count_;
  Run run_{0, 0, 0, 0, -1, 0, -1};
  int t_ = 0;
};

/// Loads keys and values by TMA, a tile of each in turn: the pages, or the part of one, that have
/// keys of the tile. One thread does it.
template <int width, class Source>
__device__ void produce(const Source& op, const CacheMaps& maps, Shared<width>& s, int kv,
                        int count) {
  PipelineState<kStages> stage;
  const int box_rows = min(kKeys, 1 << op.table.shift);
  const auto load = [&](TileBoxes<width>& to, const CUtensorMap& map, uint64_t* full,
                        uint64_t* empty, const KeyTiles<Source>& tiles) {
    const Run& run = tiles.run();
    const int t = tiles.first_key(), last = min(t + kKeys - 1, run.last);
    const int boxes = (last - t) / box_rows + 1;
    Barrier::wait(empty, stage.phase ^ 1);
    TransactionBarrier::arrive_and_expect_tx(
        full, static_cast<uint32_t>(boxes * box_rows * width * static_cast<int>(sizeof(Bf16))));
    for (int i = 0; i < boxes; ++i) {
      // A page in front of the first key may be gone. Then the first key's page is loaded for it,
      // and masked.
      const int entry = op.place(run.sequence, max(t + i * box_rows, run.first)) & -box_rows;
#pragma unroll
      for (int box = 0; box < width / 64; ++box)
        cute::SM90_TMA_LOAD_2D::copy(&map, full, kCacheHint, to.at[box] + i * box_rows * kRowBytes,
                                     kv * width + box * 64, entry);
    }
  };
  KeyTiles<Source> tiles(op, s.seen, count);
  for (; tiles.next(); stage.advance()) {
    load(s.k[stage.index], maps.keys, &s.full_k[stage.index], &s.empty_k[stage.index], tiles);
    load(s.v[stage.index], maps.values, &s.full_v[stage.index], &s.empty_v[stage.index], tiles);
  }
}

/// A consumer's 64 queries. Of a thread: accumulators 4j + 2h and 4j + 2h + 1 are columns
/// 8j + 2 (lane % 4) and the next one, in the warp's row lane / 4 + 8h.
template <int width, class Source>
class Consumer {
  using Scores = gmma::MMA_64x128x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;
  using Values =
      std::conditional_t<width == 128,
                         gmma::MMA_64x128x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::MN>,
                         gmma::MMA_64x64x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::MN>>;

 public:
  __device__ Consumer(const Source& op, Shared<width>& s, int count, int consumer)
      : op_(op),
        s_(s),
        count_(count),
        scale_(op.scale * kLog2E),
        consumer_(consumer),
        row_(consumer * kRows + thread_ / kWarp * 16 + lane_ / 4),
        q_(operand(s.q.at[0] + consumer * kRows * kRowBytes, kBoxBytes)) {}

  __device__ __forceinline__ void run() {
    KeyTiles<Source> tiles(op_, s_.seen, count_);
    if (!tiles.next()) return;
    PipelineState<kStages> keys, values;
    uint32_t p[kKeys / 4];
    float shrink[2];
    issue_scores(keys);
    cute::warpgroup_wait<0>();
    keep_in_order(scores_);
    release(&s_.empty_k[keys.index]);
    if (!tiles.whole()) mask(tiles);
    take_exponentials(shrink);
    round(p);
    int valid = tiles.valid_keys();
    while (tiles.next()) {
      keys.advance();
      issue_scores(keys);
      issue_values(p, values, valid);
      valid = tiles.valid_keys();
      cute::warpgroup_wait<1>();
      keep_in_order(scores_);
      release(&s_.empty_k[keys.index]);
      if (!tiles.whole()) mask(tiles);
      take_exponentials(shrink);
      cute::warpgroup_wait<0>();
      keep_in_order(sums_);
      release(&s_.empty_v[values.index]);
      values.advance();
#pragma unroll
      for (int i = 0; i < width / 2; ++i) sums_[i] *= shrink[i / 2 % 2];
      round(p);
    }
    issue_values(p, values, valid);
    cute::warpgroup_wait<0>();
    keep_in_order(sums_);
  }

  __device__ void write(Bf16* out, int begin, int head) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row_ + 8 * h;
      const float all = warp_sum<4>(total_[h]);
      if (r >= count_) continue;
      const float divisor = all == 0 ? 1.0f : all;  // 0: padding, whose sums are 0, too
      Bf16* to = out + (int64_t{begin + r} * op_.heads + head) * op_.width;
#pragma unroll
      for (int j = 0; j < width / 8; ++j) {
        const int column = 8 * j + 2 * (lane_ % 4);
        *reinterpret_cast<uint32_t*>(to + column) =
            pack_bf16(sums_[4 * j + 2 * h] / divisor, sums_[4 * j + 2 * h + 1] / divisor);
      }
    }
  }

 private:
  /// scores = q · the stage's keys
  __device__ __forceinline__ void issue_scores(const PipelineState<kStages>& stage) {
    Barrier::wait(&s_.full_k[stage.index], stage.phase);
    const uint64_t k = operand(s_.k[stage.index].at[0], kBoxBytes);
    keep_in_order(scores_);
    cute::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < width / 16; ++i) {
      // 16 columns are 32 bytes of a row.
      const int at = (i / 4 * kBoxBytes + i % 4 * 32) / 16;
      multiply_add<Scores>(q_ + at, k + at, scores_, std::make_index_sequence<kKeys / 2>{},
                           i == 0 ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
    }
    cute::warpgroup_commit_batch();
  }

  /// sums += p · the stage's values. Rows from `valid` on hold no values: they become 0.
  __device__ __forceinline__ void issue_values(const uint32_t (&p)[kKeys / 4],
                                               const PipelineState<kStages>& stage, int valid) {
    Barrier::wait(&s_.full_v[stage.index], stage.phase);
    if (valid < kKeys) clear(s_.v[stage.index], valid);
    const uint64_t v = operand(s_.v[stage.index].at[0], kBoxBytes);
    keep_in_order(sums_);
    cute::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
      multiply_add<Values>(p + 4 * i, v + i * (16 * kRowBytes / 16), sums_,
                           std::make_index_sequence<width / 2>{});
    cute::warpgroup_commit_batch();
  }

  /// Clears rows of a tile from `from` on, which are multiplied by 0: what was there before may be
  /// no number. Both consumers do it.
  __device__ void clear(TileBoxes<width>& tile, int from) const {
    for (auto& box : tile.at)
      for (int at = from * kRowBytes + thread_ * 16; at < kBoxBytes; at += kWarpgroup * 16)
        *reinterpret_cast<uint4*>(box + at) = uint4{};
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::sync(kWarpgroup, static_cast<uint32_t>(consumer_));
  }

  /// The exponentials as an operand.
  __device__ __forceinline__ void round(uint32_t (&p)[kKeys / 4]) const {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) p[i] = pack_bf16(scores_[2 * i], scores_[2 * i + 1]);
  }

  /// Takes out the keys that a row does not see.
  __device__ __forceinline__ void mask(const KeyTiles<Source>& tiles) {
    const Run& run = tiles.run();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row_ + 8 * h;
      const bool inside = r >= run.begin && r < run.end;
      const int first = inside ? s_.seen.first[r] : 0, last = inside ? s_.seen.last[r] : -1;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = tiles.first_key() + 8 * j + 2 * (lane_ % 4) + e;
          if (key < first || key > last) scores_[4 * j + 2 * h + e] = -INFINITY;
        }
    }
  }

  /// scores = exp(scale · scores - the largest of a row so far); `shrink`: what older sums are
  /// multiplied by.
  __device__ __forceinline__ void take_exponentials(float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = largest_[h];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        most = fmaxf(most, fmaxf(scores_[4 * j + 2 * h], scores_[4 * j + 2 * h + 1]));
      most = warp_reduce<4>(most, Max{});
      // A row that has seen no key yet stays at −∞; its exponentials must not become NaN. Where the
      // largest stays, older sums are multiplied by 1.
      const float base = most == -INFINITY ? 0.0f : most * scale_;
      shrink[h] = exp2_fast(bases_[h] - base);
      largest_[h] = most;
      bases_[h] = most == -INFINITY ? -INFINITY : base;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores_[4 * j + 2 * h + e];
          score = exp2_fast(fmaf(score, scale_, -base));
          sum += score;
        }
      total_[h] = fmaf(total_[h], shrink[h], sum);
    }
  }

  /// Lets the producer fill a stage again.
  __device__ void release(uint64_t* empty) const {
    if (lane_ == 0) Barrier::arrive(empty);
  }

  const Source& op_;
  Shared<width>& s_;
  const int thread_ = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int lane_ = thread_ % kWarp;
  int count_;
  float scale_;
  int consumer_, row_;
  uint64_t q_;
  float scores_[kKeys / 2], sums_[width / 2] = {};
  float largest_[2] = {-INFINITY, -INFINITY}, total_[2] = {};
  float bases_[2] = {-INFINITY, -INFINITY};  // scale · largest
};

template <int width, class Source>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_forward(Source op, const __grid_constant__ CacheMaps maps, Bf16* out) {
  extern __shared__ uint8_t memory[];
  auto& s = *reinterpret_cast<Shared<width>*>((reinterpret_cast<uintptr_t>(memory) + 1023) &
                                              ~uintptr_t{1023});
  // The last tiles see the most keys: start with them.
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int head = static_cast<int>(blockIdx.y), kv = head / (op.heads / op.kv_heads);
  const int count = min(kQueries, op.tokens - begin);
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  s.q.fetch(count, [&](int r) { return op.query(begin + r, head); });
  __pipeline_commit();
  s.seen.read(op, begin, count);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i)
      for (uint64_t* pair : {&s.full_k[i], &s.full_v[i]}) Barrier::init(pair, 1);
    for (int i = 0; i < kStages; ++i)
      for (uint64_t* pair : {&s.empty_k[i], &s.empty_v[i]})
        Barrier::init(pair, kConsumers * kWarpgroup / kWarp);
    cutlass::arch::fence_barrier_init();
  }
  __pipeline_wait_prior(0);
  cutlass::arch::fence_view_async_shared();
  __syncthreads();
  // 40 + 2 · 232 = 504 registers for three threads, as it was with 168 each.
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x < kWarp && cute::elect_one_sync()) produce<width>(op, maps, s, kv, count);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    Consumer<width, Source> consumer(op, s, count, warpgroup - 1);
    consumer.run();
    consumer.write(out, begin, head);
  }
}

}  // namespace

bool wgmma_cached_attention(const ops::CachedAttention& op, cudaStream_t stream) {
  const ops::Heads& heads = op.heads;
  constexpr int64_t kSwizzledRows = 8;  // a box begins at a multiple
  if (op.cache.type != ops::CacheType::bf16 || op.qkv.dtype() != Dtype::bf16 ||
      op.out.dtype() != Dtype::bf16 || (heads.width != 64 && heads.width != 128) ||
      op.cache.page_tokens() < kSwizzledRows || !aligned(op.qkv) || !aligned(op.out) ||
      !has_aligned_rows(op.cache, heads))
    return false;
  const auto source = cached_source<Bf16>(op);
  const int64_t tokens = op.cache.pages() * op.cache.page_tokens(),
                columns = heads.kv * heads.width;
  const int box_rows = static_cast<int>(std::min<int64_t>(kKeys, op.cache.page_tokens()));
  const auto map = [&](const Tensor& tensor) {
    return map_of(tensor.data(), Dtype::bf16, {columns, tokens}, {columns}, {64, box_rows});
  };
  const CacheMaps maps{map(op.cache.keys), map(op.cache.values)};
  const auto run = [&](auto width) {
    constexpr size_t kBytes = sizeof(Shared<width()>) + 1024;
    const auto kernel = wgmma_forward<width(), CachedSource<Bf16>>;
    allow_shared(kernel, kBytes, "cached_attention");
    const dim3 grid(blocks(divide_up(source.tokens, kQueries)), blocks(source.heads));
    kernel<<<grid, kThreads, kBytes, stream>>>(source, maps, data<Bf16>(op.out));
  };
  if (heads.width == 64)
    run(std::integral_constant<int, 64>{});
  else
    run(std::integral_constant<int, 128>{});
  check_launch("cached_attention");
  return true;
}

}  // namespace mixtral::cuda
