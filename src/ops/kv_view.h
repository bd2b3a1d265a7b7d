#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ops/common.h"
#include "ops/heads.h"

namespace mixtral::ops {

/// The entry of KvView::table where a sequence has no page.
inline constexpr int32_t kNoPage = -1;

/// How a cache keeps numbers: as floats, or as codes of 8 bits with a scale a head and token. A
/// number is its code times the scale. int8: whole numbers with a sign; fp8: e4m3
/// (ops/format_fp8.h).
enum class CacheType : uint8_t { f64, f32, bf16, f16, int8, fp8 };

constexpr bool is_coded(CacheType type) {
  return type == CacheType::int8 || type == CacheType::fp8;
}
/// The type of the elements that a cache is stored as; of codes and scales, bytes.
constexpr Dtype stored_dtype(CacheType type) {
  switch (type) {
    case CacheType::f64:
      return Dtype::f64;
    case CacheType::f32:
      return Dtype::f32;
    case CacheType::bf16:
      return Dtype::bf16;
    case CacheType::f16:
      return Dtype::f16;
    case CacheType::int8:
    case CacheType::fp8:
      return Dtype::u8;
  }
  return Dtype::u8;
}
/// The cache of floats of this type.
CacheType cache_type_of(Dtype floats);
constexpr std::string_view to_string(CacheType type) {
  return type == CacheType::int8  ? "int8"
         : type == CacheType::fp8 ? "fp8"
                                  : mixtral::to_string(stored_dtype(type));
}

/// One layer's keys and values of earlier tokens, in pages of T tokens (Kwon et al. 2023,
/// "PagedAttention"). Token t of sequence s is entry t mod T of page table[s, t / T]. Sequences may
/// share pages. Pages that no token will be attended to from, such as those behind a sliding
/// window, may be missing.
///
/// A page of codes holds the codes [T, G, h] of its tokens, and behind them their scales [G, T] in
/// f32: so rows of codes are as aligned as rows of floats, and the scales of neighbouring tokens
/// lie side by side.
struct KvView {
  Tensor keys;    // [pages, T, G, h] f64, f32, bf16 or f16, or [pages, T, G, h + 4] u8; T = 2^i
  Tensor values;  // of the same shape and type
  Tensor table;   // [sequences, W] i32: pages, or kNoPage
  CacheType type = CacheType::f32;

  explicit operator bool() const { return !keys.empty(); }
  bool coded() const { return is_coded(type); }
  int64_t pages() const { return keys.dim(0); }
  int64_t page_tokens() const { return keys.dim(1); }  // T
  int64_t sequences() const { return table.dim(0); }
  int64_t context() const { return table.dim(1) * page_tokens(); }  // tokens that the table reaches
};

/// Elements that a head's h numbers take in a cache of this type.
constexpr int64_t cached_width(CacheType type, int64_t width) {
  return is_coded(type) ? width + static_cast<int64_t>(sizeof(float)) : width;
}

/// Where codes and scales stand in pages of `tokens` tokens with `heads` heads of `width` codes:
/// bytes from the first page of keys, or of values, on.
struct CodedPages {
  int64_t tokens = 0, heads = 0, width = 0;

  int64_t row_bytes() const { return heads * width; }  // of a token's codes
  int64_t scales_at() const { return tokens * row_bytes(); }
  int64_t page_bytes() const {
    return scales_at() + tokens * heads * static_cast<int64_t>(sizeof(float));
  }
  /// Of head g of entry i of a page.
  int64_t codes(int64_t page, int64_t i, int64_t g) const {
    return page * page_bytes() + i * row_bytes() + g * width;
  }
  int64_t scale(int64_t page, int64_t i, int64_t g) const {
    return page * page_bytes() + scales_at() +
           (g * tokens + i) * static_cast<int64_t>(sizeof(float));
  }
};
CodedPages coded_pages(const KvView& cache, const Heads& heads);

/// The scalar reference of a cache of codes, all in f32. With the largest magnitude m of a head's
/// numbers: int8 has the scale m / 127, and a code is the whole number nearest to x · (127 / m);
/// fp8 has a power of two as scale (fp8_scale_bits), and a code is the e4m3 nearest to x / scale.
/// Ties go to even. Numbers that are not finite make the scale NaN. Returns the scale.
float pack_head(CacheType type, std::span<const float> values, uint8_t* codes);
/// The number that a code stands for, without its scale.
float unpack_code(CacheType type, uint8_t code);

/// Writes the keys and values of new tokens into a cache: token n goes to position positions[n] of
/// sequence rows[n], whose page must exist. Padding rows write nothing. No two tokens have the same
/// place.
struct CacheAppend {
  static constexpr std::string_view kName = "cache_append";
  Tensor qkv;        // [N, (H + 2G) h], keys already rotated
  Tensor positions;  // [N] i32, or kPadding
  Tensor rows;       // [N] i32: rows of the table; not read where the position is kPadding
  KvView cache;      // keys and values are changed
  Heads heads;
};

/// pages[i, to] = pages[i, from] for every i. A sequence gets a page of its own this way before it
/// writes where others read (copy on write).
struct CopyPage {
  static constexpr std::string_view kName = "copy_page";
  Tensor pages;  // [planes, pages, elements of a page] of any type: each layer's keys and values
  int64_t from = 0;
  int64_t to = 0;
};

/// Throws InternalError unless the view is whole and has these heads.
void check(const KvView&, const Heads&);
void check(const CacheAppend&);
void check(const CopyPage&);
Cost cost(const CacheAppend&);
Cost cost(const CopyPage&);

/// For backends that compute in ordinary memory: throws InternalError unless `sequence` is a row of
/// the table and has pages for its tokens first .. last.
void check_pages(const KvView&, int64_t sequence, int64_t first, int64_t last);

}  // namespace mixtral::ops
