#pragma once

#include <cstdint>
#include <span>

#include "ops/common.h"
#include "ops/heads.h"

namespace mixtral::ops {

/// The entry of KvView::table where a sequence has no page.
inline constexpr int32_t kNoPage = -1;

/// One layer's keys and values of earlier tokens, in pages of T tokens (Kwon et al. 2023,
/// "PagedAttention"). Token t of sequence s is entry t mod T of page table[s, t / T]. Sequences may
/// share pages. Pages that no token will be attended to from, such as those behind a sliding
/// window, may be missing.
///
/// In 8 bits (u8) a head's h numbers are h codes, whole numbers with a sign, and behind them their
/// scale in f32: a number is its code times the scale (pack_head).
struct KvView {
  Tensor keys;    // [pages, T, G, h] f64, f32, bf16 or f16, or [pages, T, G, h + 4] u8; T = 2^i
  Tensor values;  // of the same shape and type
  Tensor table;   // [sequences, W] i32: pages, or kNoPage

  explicit operator bool() const { return !keys.empty(); }
  bool coded() const { return keys.dtype() == Dtype::u8; }
  int64_t pages() const { return keys.dim(0); }
  int64_t page_tokens() const { return keys.dim(1); }  // T
  int64_t sequences() const { return table.dim(0); }
  int64_t context() const { return table.dim(1) * page_tokens(); }  // tokens that the table reaches
};

/// Elements that a head's h numbers take in a cache of this type.
constexpr int64_t cached_width(Dtype type, int64_t width) {
  return type == Dtype::u8 ? width + static_cast<int64_t>(sizeof(float)) : width;
}
/// The scalar reference of a cache in 8 bits: with the largest magnitude m of a head's numbers, the
/// scale is m / 127, and a code the whole number nearest to x · (127 / m), ties to even, all in
/// f32. Numbers that are not finite make the scale NaN.
void pack_head(std::span<const float> values, uint8_t* to);
/// The scale behind `width` codes.
float scale_of_head(const uint8_t* codes, int64_t width);

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
