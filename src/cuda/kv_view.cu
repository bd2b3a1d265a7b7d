#include <optional>
#include <utility>

#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/kv_view.cuh"
#include "cuda/rope.cuh"
#include "cuda/rope.h"
#include "cuda/status.h"
#include "ops/format_fp8.h"
#include "ops/kv_view.h"
#include "ops/rounding.h"

// Writing to the key-value cache. Bound by bandwidth; at a decoding step's sizes, by launch
// latency.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128;

template <class T, class K>
struct Append {
  const T* qkv;
  const int *positions, *rows;
  PageTable table;
  K *keys, *values;
  int columns, query_columns, kv_columns;
};

/// A block a token.
template <int n, class T, class K>
__global__ void __launch_bounds__(kThreads) cache_append(Append<T, K> op) {
  allow_next();
  wait_for_previous();
  const int64_t token = blockIdx.x;
  const int position = op.positions[token];
  if (position == ops::kPadding) return;
  const int64_t place = int64_t{op.table.entry(op.rows[token], position)} * op.kv_columns;
  const T* key = op.qkv + token * op.columns + op.query_columns;
  for (int c = static_cast<int>(threadIdx.x) * n; c < op.kv_columns; c += kThreads * n) {
    float x[n];
    load(key + c, x);
    store(op.keys + place + c, x);
    load(key + op.kv_columns + c, x);
    store(op.values + place + c, x);
  }
}

constexpr int64_t kFewTokens = 64;
constexpr int kRotateThreads = 512;

struct RotateAppend {
  Bf16* qkv;
  const int *positions, *rows;
  const float* rotations;
  PageTable table;
  void *keys, *values;
  int columns, heads, query_heads, half;  // heads: of queries and keys
  bool early;  // no kernel that may still run writes positions or the page table
};

/// Rope and CacheAppend; a block a token. Packs of pairs of queries and keys first, then of values.
template <class K>
__global__ void __launch_bounds__(kRotateThreads) rotate_append(const RotateAppend op) {
  constexpr int n = 8;
  allow_next();
  if (!op.early) wait_for_previous();
  const int64_t token = blockIdx.x;
  const int position = op.positions[token];
  // Were all tokens padding, this kernel would otherwise end before the one in front of it.
  if (position == ops::kPadding) return wait_for_previous();
  const int kv_heads = op.heads - op.query_heads, kv_columns = kv_heads * 2 * op.half;
  const int64_t place = int64_t{op.table.entry(op.rows[token], position)} * kv_columns;
  const float* cosines = op.rotations + int64_t{position} * 2 * op.half;
  Bf16* const row = op.qkv + token * op.columns;
  const int packs = op.half / n, pairs = op.heads * packs;
  const int thread = static_cast<int>(threadIdx.x);
  float cosine[n], sine[n];
  const auto load_rotation = [&](int i) {
    if (i >= pairs) return;
    load(cosines + i % packs * n, cosine);
    load(cosines + op.half + i % packs * n, sine);
  };
  load_rotation(thread);
  if (op.early) wait_for_previous();
  for (int i = thread; i < pairs + kv_columns / n; i += kRotateThreads) {
    if (i > thread) load_rotation(i);
    if (i >= pairs) {
      const int column = (i - pairs) * n;
      float x[n];
      load(row + op.heads * 2 * op.half + column, x);
      store(static_cast<K*>(op.values) + place + column, x);
      continue;
    }
    const int column = i % packs * n, head = i / packs;
    Bf16* const pair = row + head * 2 * op.half + column;
    float a[n], b[n];
    load(pair, a);
    load(pair + op.half, b);
    rotate_pairs(a, b, cosine, sine);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      a[j] = widen<float>(narrow<Bf16>(a[j]));
      b[j] = widen<float>(narrow<Bf16>(b[j]));
    }
    store(pair, a);
    store(pair + op.half, b);
    if (head < op.query_heads) continue;
    K* const key =
        static_cast<K*>(op.keys) + place + (head - op.query_heads) * 2 * op.half + column;
    store(key, a);
    store(key + op.half, b);
  }
}

/// Writes a head of a token to the cache as codes: as ops::pack_head, to the bit. A warp has the
/// head, and lanes its columns in packs; what begins behind the head's end is not read.
template <class K, int packs, int n>
__device__ void append_head(float (&x)[packs][n], const int (&columns)[packs], int width,
                            uint8_t* row, uint8_t* scale_place) {
  float largest = 0;
  bool finite = true;
#pragma unroll
  for (int p = 0; p < packs; ++p)
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if (columns[p] >= width) x[p][j] = 0;
      largest = fmaxf(largest, fabsf(x[p][j]));
      finite = finite && isfinite(x[p][j]);
    }
  largest = warp_reduce(largest, Max{});
  finite = __all_sync(kAllLanes, finite);
  float scale = __uint_as_float(0x7fc00000u), factor = 0;  // NaN
  if (finite && __is_same(K, Fp8Code)) {
    factor = __uint_as_float(ops::fp8_scale_bits(__float_as_uint(largest)));
    scale = largest > 0 ? factor : 0;
  } else if (finite) {
    factor = largest < ops::kLeastRounded ? 0 : __fdiv_rn(127, largest);
    scale = __fdiv_rn(largest, 127);
  }
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    if (columns[p] >= width) continue;
    Pack<uint8_t, n> codes;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if (!finite)
        codes.at[j] = 0;
      else if constexpr (__is_same(K, Fp8Code))
        codes.at[j] = __nv_cvt_float_to_fp8(__fdiv_rn(x[p][j], factor), __NV_SATFINITE, __NV_E4M3);
      else
        codes.at[j] = static_cast<uint8_t>(__float2int_rn(__fmul_rn(x[p][j], factor)));
    }
    *reinterpret_cast<Pack<uint8_t, n>*>(row + columns[p]) = codes;
  }
  if (threadIdx.x % kWarp == 0) store_float(scale_place, scale);
}

/// The same with a cache of codes. A warp a head: of queries, keys or values, in this order.
template <class K>
__global__ void __launch_bounds__(kRotateThreads)
    rotate_append_codes(const RotateAppend op, const CacheRows places) {
  constexpr int n = 2, kPairs = kMostHeadWidth / 2 / (kWarp * n);
  allow_next();
  if (!op.early) wait_for_previous();
  const int64_t token = blockIdx.x;
  const int position = op.positions[token];
  if (position == ops::kPadding) return wait_for_previous();  // as in rotate_append
  const int entry = op.table.entry(op.rows[token], position);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head = static_cast<int>(blockIdx.y * kRotateThreads + threadIdx.x) / kWarp;
  const bool rotated = head < op.heads;
  const float* cosines = op.rotations + int64_t{position} * 2 * op.half;
  float cosine[kPairs][n], sine[kPairs][n];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int column = (p * kWarp + lane) * n;
    if (!rotated || column >= op.half) continue;
    load(cosines + column, cosine[p]);
    load(cosines + op.half + column, sine[p]);
  }
  if (op.early) wait_for_previous();
  if (head >= 2 * op.heads - op.query_heads) return;

  Bf16* const row = op.qkv + token * op.columns + int64_t{head} * 2 * op.half;
  float x[2 * kPairs][n];
  int columns[2 * kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int column = (p * kWarp + lane) * n;
    const bool inside = column < op.half;
    columns[2 * p] = inside ? column : 2 * op.half;
    columns[2 * p + 1] = op.half + column;
    if (!inside) continue;
    auto &a = x[2 * p], &b = x[2 * p + 1];
    load(row + column, a);
    load(row + op.half + column, b);
    if (!rotated) continue;
    rotate_pairs(a, b, cosine[p], sine[p]);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      a[j] = widen<float>(narrow<Bf16>(a[j]));
      b[j] = widen<float>(narrow<Bf16>(b[j]));
    }
    store(row + column, a);
    store(row + op.half + column, b);
  }
  if (head < op.query_heads) return;
  const int of_cache = head - (rotated ? op.query_heads : op.heads);
  auto* const to = static_cast<uint8_t*>(rotated ? op.keys : op.values);
  append_head<K>(x, columns, 2 * op.half, to + places.row(entry, of_cache),
                 to + places.scale(entry, of_cache));
}

template <class T>
struct AppendCodes {
  const T* qkv;
  const int *positions, *rows;
  PageTable table;
  CacheRows places;
  uint8_t *keys, *values;
  int columns, query_columns;
};

/// A block a token, a warp a head of its keys and values.
template <int n, class T, class K>
__global__ void __launch_bounds__(kThreads) cache_append_codes(AppendCodes<T> op) {
  constexpr int kPacks = kMostHeadWidth / (kWarp * n);
  allow_next();
  wait_for_previous();
  const int64_t token = blockIdx.x;
  const int position = op.positions[token];
  if (position == ops::kPadding) return;
  const int entry = op.table.entry(op.rows[token], position);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, width = op.places.width;
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < 2 * op.places.heads;
       i += kThreads / kWarp) {
    const int head = i % op.places.heads;
    uint8_t* to = i < op.places.heads ? op.keys : op.values;
    const T* from = op.qkv + token * op.columns + op.query_columns + int64_t{i} * width;
    float x[kPacks][n];
    int columns[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      columns[p] = (p * kWarp + lane) * n;
      if (columns[p] < width) load(from + columns[p], x[p]);
    }
    append_head<K>(x, columns, width, to + op.places.row(entry, head),
                   to + op.places.scale(entry, head));
  }
}

template <class T>
void append_codes(const ops::CacheAppend& op, cudaStream_t stream) {
  require_head_width(op.heads.width);
  const AppendCodes<T> append{data<T>(op.qkv),
                              data<int>(op.positions),
                              data<int>(op.rows),
                              page_table(op.cache),
                              cache_rows(op.cache, op.heads),
                              data<uint8_t>(op.cache.keys),
                              data<uint8_t>(op.cache.values),
                              static_cast<int>(op.qkv.dim(1)),
                              op.heads.query * op.heads.width};
  const dim3 grid(blocks(op.qkv.dim(0)));
  // Behind each page's rows are scales, of 4 bytes.
  with_packs<4>(op.heads.width, {op.qkv, op.cache.keys, op.cache.values}, [&](auto pack) {
    if (op.cache.type == ops::CacheType::fp8)
      chain(cache_append_codes<pack(), T, Fp8Code>, grid, kThreads, 0, stream, append);
    else
      chain(cache_append_codes<pack(), T, Int8Code>, grid, kThreads, 0, stream, append);
  });
}

using Byte = unsigned char;

/// Copies packs of n bytes of a page; blocks in y take a plane each.
template <int n>
__global__ void __launch_bounds__(kThreads)
    copy_page(Byte* pages, int64_t plane_bytes, int64_t page_bytes, int64_t from, int64_t to) {
  Byte* plane = pages + blockIdx.y * plane_bytes;
  const auto* source = reinterpret_cast<const Pack<Byte, n>*>(plane + from * page_bytes);
  auto* target = reinterpret_cast<Pack<Byte, n>*>(plane + to * page_bytes);
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < page_bytes / n) target[i] = source[i];
}

}  // namespace

bool may_append(const ops::Rope& op) {
  return op.qkv.dtype() == Dtype::bf16 && op.qkv.dim(0) <= kFewTokens && !op.inverse &&
         op.heads.width % 16 == 0 && packs(8, op.heads.width / 2, {op.qkv, op.table});
}

bool joins(const ops::Rope& rope, const ops::CacheAppend& append) {
  return append.qkv.data() == rope.qkv.data() && append.qkv.shape() == rope.qkv.shape() &&
         append.positions.data() == rope.positions.data() &&
         append.heads.query == rope.heads.query && append.heads.kv == rope.heads.kv &&
         append.heads.width == rope.heads.width && append.heads.width <= kMostHeadWidth &&
         packs(8, rope.heads.width / 2, {append.cache.keys, append.cache.values});
}

void rotate_and_append(const ops::Rope& rope, const ops::CacheAppend& append, bool early,
                       cudaStream_t stream) {
  const RotateAppend both{data<Bf16>(rope.qkv),
                          data<int>(rope.positions),
                          data<int>(append.rows),
                          data<float>(rope.table),
                          page_table(append.cache),
                          append.cache.keys.data(),
                          append.cache.values.data(),
                          static_cast<int>(rope.qkv.dim(1)),
                          rope.heads.query + rope.heads.kv,
                          rope.heads.query,
                          rope.heads.width / 2,
                          early};
  const unsigned tokens = blocks(rope.qkv.dim(0));
  if (append.cache.coded()) {
    const auto start = [&](auto kernel) {
      const int64_t heads = rope.heads.query + 2 * int64_t{rope.heads.kv};
      chain(kernel, dim3(tokens, blocks(divide_up(heads, kRotateThreads / kWarp))), kRotateThreads,
            0, stream, both, cache_rows(append.cache, append.heads));
    };
    if (append.cache.type == ops::CacheType::fp8)
      start(rotate_append_codes<Fp8Code>);
    else
      start(rotate_append_codes<Int8Code>);
  } else {
    with_weight(append.cache.keys.dtype(), [&](auto k) {
      chain(rotate_append<type_of<decltype(k)>>, dim3(tokens), kRotateThreads, 0, stream, both);
    });
  }
  check_launch("cache_append");
}

void CudaBackend::run(const ops::CacheAppend& op) {
  const auto appended = [&] {
    chained(behind_ == Launch::product ? Launch::append : Launch::chained);
    appended_positions_ = op.positions.data();
    appended_keys_ = op.cache.keys.data();
  };
  if (waiting_.rope && joins(*waiting_.rope, op)) {
    const ops::Rope rope = *std::exchange(waiting_.rope, std::nullopt);
    use_device();
    rotate_and_append(rope, op, behind_ == Launch::product, stream_);
    return appended();
  }
  use_device();
  const int64_t tokens = op.qkv.dim(0);
  if (tokens == 0) return;
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    if (op.cache.coded()) return append_codes<T>(op, stream_);
    with_weight(op.cache.keys.dtype(), [&](auto k) {
      using K = type_of<decltype(k)>;
      // Keys and values begin at multiples of the head width in a packed row.
      with_packs<8>(op.heads.width, {op.qkv, op.cache.keys, op.cache.values}, [&](auto pack) {
        chain(cache_append<pack(), T, K>, dim3(blocks(tokens)), kThreads, 0, stream_,
              Append<T, K>{data<T>(op.qkv), data<int>(op.positions), data<int>(op.rows),
                           page_table(op.cache), data<K>(op.cache.keys), data<K>(op.cache.values),
                           static_cast<int>(op.qkv.dim(1)), op.heads.query * op.heads.width,
                           op.heads.kv * op.heads.width});
      });
    });
  });
  check_launch("cache_append");
  appended();
}

void CudaBackend::run(const ops::CopyPage& op) {
  use_device();
  const int64_t page_bytes = op.pages.dim(2) * size_of(op.pages.dtype());
  if (op.from == op.to || op.pages.dim(0) == 0 || page_bytes == 0) return;
  const int64_t elements = 16 / size_of(op.pages.dtype());
  const auto copy = [&](auto n) {
    const dim3 grid(blocks(divide_up(page_bytes / n(), kThreads)), blocks(op.pages.dim(0)));
    copy_page<n()><<<grid, kThreads, 0, stream_>>>(static_cast<Byte*>(op.pages.data()),
                                                   op.pages.dim(1) * page_bytes, page_bytes,
                                                   op.from, op.to);
  };
  if (packs(static_cast<int>(elements), op.pages.dim(2), {op.pages}))
    copy(std::integral_constant<int, 16>{});
  else
    copy(std::integral_constant<int, 1>{});
  check_launch("copy_page");
}

}  // namespace mixtral::cuda
