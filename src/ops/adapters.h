#pragma once

#include "ops/common.h"

namespace mixtral::ops {

/// Sorts the rows of a product by the LoRA adapter that each row's token uses, and within an
/// adapter by group (expert), so that one grouped product by the stacked updates of M adapters and
/// G groups serves all rows. Rows that follow one another in an adapter and group keep their order.
/// Rows of no adapter, or of no group (those behind the last one), stand at the end.
struct SortByAdapter {
  static constexpr std::string_view kName = "sort_by_adapter";
  Tensor adapters;  // [N] i32: each token's adapter, 0 .. M−1; any other number: none
  Tensor source;    // [R] i32: row r is of token source[r] / divisor; or empty: of token r, R = N
  Tensor groups;    // [G+1] i32: rows groups[g] .. groups[g+1] are group g's; or empty: G = 1
  Tensor order;     // [R] i32: the rows, sorted
  Tensor place;     // [R] i32: where each row stands in `order`
  Tensor offsets;   // [M·G+1] i32: from offsets[a·G + g] to the next stand adapter a's rows in
                    // group g
  int64_t divisor = 1;

  int64_t group_count() const { return groups ? groups.dim(0) - 1 : 1; }
  int64_t adapter_count() const { return (offsets.dim(0) - 1) / group_count(); }
};

void check(const SortByAdapter&);
Cost cost(const SortByAdapter&);

}  // namespace mixtral::ops
