// Writing to the key-value cache. Bound by memory.

#include "ops/kv_view.h"

#include <cstring>

#include "cpu/backend.h"
#include "cpu/kv_view.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kv_view.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void append(const ops::CacheAppend& op, int64_t begin, int64_t end) {
  const int64_t length = int64_t{op.heads.kv} * op.heads.width, columns = op.heads.columns();
  const int64_t size = op.cache.page_tokens();
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = op.positions.as<int32_t>()[n];
    if (position == ops::kPadding) continue;
    const float* keys = op.qkv.as<float>() + n * columns + int64_t{op.heads.query} * op.heads.width;
    const int32_t* pages =
        op.cache.table.as<int32_t>() + op.rows.as<int32_t>()[n] * op.cache.table.dim(1);
    const int64_t index = pages[position / size] * size + position % size;
    T* key_row = op.cache.keys.as<T>() + index * length;
    T* value_row = op.cache.values.as<T>() + index * length;
    for_lanes(length, [&](int64_t i, int64_t count) HWY_ATTR {
      store_n(load_n(keys + i, count), key_row + i, count);
      store_n(load_n(keys + length + i, count), value_row + i, count);
    });
  }
}

/// Codes are few a token, and rounded one by one.
void append_codes(const ops::CacheAppend& op, int64_t begin, int64_t end) {
  const int64_t width = op.heads.width, columns = op.heads.columns();
  const ops::CodedPages at = coded_pages(op.cache, op.heads);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = op.positions.as<int32_t>()[n];
    if (position == ops::kPadding) continue;
    const int32_t* pages =
        op.cache.table.as<int32_t>() + op.rows.as<int32_t>()[n] * op.cache.table.dim(1);
    const int64_t page = pages[position / at.tokens], i = position % at.tokens;
    const float* numbers = op.qkv.as<float>() + n * columns + int64_t{op.heads.query} * width;
    for (const Tensor& to : {op.cache.keys, op.cache.values}) {
      auto* bytes = to.as<uint8_t>();
      for (int64_t g = 0; g < op.heads.kv; ++g, numbers += width) {
        const float scale = ops::pack_head(op.cache.type, {numbers, static_cast<size_t>(width)},
                                           bytes + at.codes(page, i, g));
        std::memcpy(bytes + at.scale(page, i, g), &scale, sizeof scale);
      }
    }
  }
}

void append_rows(const ops::CacheAppend& op, int64_t begin, int64_t end) {
  if (op.cache.coded()) return append_codes(op, begin, end);
  if (op.cache.keys.dtype() == Dtype::f32)
    append<float>(op, begin, end);
  else if (op.cache.keys.dtype() == Dtype::bf16)
    append<bf16>(op, begin, end);
  else
    append<f16>(op, begin, end);
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(append_rows);

}  // namespace

void CpuBackend::run(const ops::CacheAppend& op) {
  expect_f32(op.kName, {op.qkv});
  expect_cache_type(op.kName, op.cache);
  for (int64_t n = 0; n < op.qkv.dim(0); ++n) {
    const int32_t position = op.positions.as<int32_t>()[n];
    if (position != ops::kPadding)
      check_pages(op.cache, op.rows.as<int32_t>()[n], position, position);
  }
  const int64_t length = int64_t{2} * op.heads.kv * op.heads.width;
  pool_.for_ranges(op.qkv.dim(0), row_grain(length), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(append_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::CopyPage& op) {
  if (op.from == op.to) return;
  pool_.for_each(op.pages.dim(0), [&](int64_t plane, int) {
    const Tensor from = op.pages[plane][op.from], to = op.pages[plane][op.to];
    std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
