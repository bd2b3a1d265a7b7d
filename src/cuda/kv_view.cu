#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/kv_view.cuh"
#include "cuda/status.h"
#include "ops/kv_view.h"

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
  wait_for_previous();
  allow_next();
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

void CudaBackend::run(const ops::CacheAppend& op) {
  use_device();
  const int64_t tokens = op.qkv.dim(0);
  if (tokens == 0) return;
  with_activation(op.qkv.dtype(), [&](auto t) {
    with_weight(op.cache.keys.dtype(), [&](auto k) {
      using T = type_of<decltype(t)>;
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
  chained();
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
