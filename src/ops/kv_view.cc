#include "ops/kv_view.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "ops/format_fp8.h"
#include "ops/rounding.h"

namespace mixtral::ops {

using detail::expect_dtype;
using detail::expect_shape;

CacheType cache_type_of(Dtype floats) {
  for (const CacheType type : {CacheType::f64, CacheType::f32, CacheType::bf16, CacheType::f16})
    if (stored_dtype(type) == floats) return type;
  CHECK(false, "no cache of " + std::string(mixtral::to_string(floats)));
  return CacheType::f32;
}

void check(const KvView& view, const Heads& heads) {
  expect_shape("keys", view.keys, {-1, -1, heads.kv, cached_width(view.type, heads.width)});
  expect_dtype("keys", view.keys, stored_dtype(view.type));
  expect_shape("values", view.values, view.keys.shape());
  expect_dtype("values", view.values, view.keys.dtype());
  CHECK(std::has_single_bit(static_cast<uint64_t>(view.page_tokens())),
        "a page's tokens are a power of two");
  expect_shape("table", view.table, {-1, -1});
  expect_dtype("table", view.table, Dtype::i32);
}

CodedPages coded_pages(const KvView& cache, const Heads& heads) {
  CHECK(cache.coded());
  return {.tokens = cache.page_tokens(), .heads = heads.kv, .width = heads.width};
}

float pack_head(CacheType type, std::span<const float> values, uint8_t* codes) {
  CHECK(is_coded(type));
  float largest = 0;
  bool finite = true;
  for (const float value : values) {
    largest = std::max(largest, std::abs(value));
    finite = finite && std::isfinite(value);
  }
  if (!finite) {
    std::fill_n(codes, values.size(), uint8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (type == CacheType::fp8) {
    const auto scale = std::bit_cast<float>(fp8_scale_bits(std::bit_cast<uint32_t>(largest)));
    for (const float value : values) *codes++ = to_e4m3(value / scale);
    return largest > 0 ? scale : 0;
  }
  const float inverse = largest < kLeastRounded ? 0 : 127 / largest;
  for (const float value : values)
    *codes++ = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(value * inverse)));
  return largest / 127;
}

float unpack_code(CacheType type, uint8_t code) {
  return type == CacheType::fp8 ? from_e4m3(code) : static_cast<float>(static_cast<int8_t>(code));
}

void check(const CacheAppend& op) {
  expect_shape("qkv", op.qkv, {-1, op.heads.columns()});
  expect_shape("positions", op.positions, {op.qkv.dim(0)});
  expect_dtype("positions", op.positions, Dtype::i32);
  expect_shape("rows", op.rows, {op.qkv.dim(0)});
  expect_dtype("rows", op.rows, Dtype::i32);
  check(op.cache, op.heads);
}

void check(const CopyPage& op) {
  expect_shape("pages", op.pages, {-1, -1, -1});
  CHECK(op.from >= 0 && op.from < op.pages.dim(1) && op.to >= 0 && op.to < op.pages.dim(1),
        "a page outside the pool");
}

Cost cost(const CacheAppend& op) {
  const double moved = static_cast<double>(op.qkv.dim(0)) * 2 * op.heads.kv * op.heads.width;
  return {0, moved * static_cast<double>(size_of(op.qkv.dtype()) + size_of(op.cache.keys.dtype()))};
}

Cost cost(const CopyPage& op) {
  return {0, 2 * static_cast<double>(op.pages.dim(0) * op.pages.dim(2)) *
                 static_cast<double>(size_of(op.pages.dtype()))};
}

void check_pages(const KvView& view, int64_t sequence, int64_t first, int64_t last) {
  CHECK(sequence >= 0 && sequence < view.sequences(), "no sequence " + std::to_string(sequence) +
                                                          " in a cache of " +
                                                          std::to_string(view.sequences()));
  CHECK(first >= 0 && first <= last && last < view.context(),
        "position " + std::to_string(last) + " in a cache of " + std::to_string(view.context()) +
            " tokens a sequence");
  const int32_t* pages = view.table.as<int32_t>() + sequence * view.table.dim(1);
  for (int64_t i = first / view.page_tokens(); i <= last / view.page_tokens(); ++i)
    CHECK(pages[i] >= 0 && pages[i] < view.pages(), "sequence " + std::to_string(sequence) +
                                                        " has no page for position " +
                                                        std::to_string(i * view.page_tokens()));
}

}  // namespace mixtral::ops
