#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/matmul.h"

/// How products are divided into items, and which kind of kernel takes each.
namespace mixtral::cpu {

constexpr int64_t kStridedTiles = 8;   // row tiles that are packed at once where k is strided,
constexpr int64_t kStridedPanels = 2;  // or panels

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

/// The length, a multiple of `grain`, of nearly equal parts of `total`, each at most about `limit`.
constexpr int64_t even_part(int64_t total, int64_t limit, int64_t grain) {
  return round_up(divide_up(total, divide_up(total, std::max(limit, grain))), grain);
}

/// Whether few rows meet lines of B that are contiguous in k: then B is read once, unpacked.
bool streams(const Product& p, const Kernels& kernels);
/// Whether A's packed rows leave room in the L2 cache, so that a panel of B is used while it is in
/// the L1 cache and need not be kept: for few rows. (Where B is strided, packing one panel at a
/// time would read too little of each of its rows.)
bool has_few_rows(const Product& p, const Kernels& kernels);
/// Whether a block of A stays in the cache while the columns of B pass over it, or the reverse.
bool rows_stay(const Product& p);

}  // namespace mixtral::cpu
