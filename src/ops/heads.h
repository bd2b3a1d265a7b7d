#pragma once

#include <cstdint>

namespace mixtral::ops {

/// How a row of packed queries, keys and values is laid out: H query heads, then G key heads, then
/// G value heads, each h wide. Query head i uses key and value head i / (H / G).
struct Heads {
  int query = 0;  // H
  int kv = 0;     // G, divides H
  int width = 0;  // h, even

  constexpr int64_t columns() const { return int64_t{query + 2 * kv} * width; }
};

}  // namespace mixtral::ops
