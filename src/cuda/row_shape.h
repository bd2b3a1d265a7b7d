#pragma once

#include <cstdint>

#include "cuda/dispatch.h"

namespace mixtral::cuda {

/// How a block spreads over a row: each thread holds `items` packs of it.
struct RowShape {
  int threads;
  int64_t items;
};

inline RowShape shape_of(int64_t width, int pack) {
  const int64_t packs = divide_up(width, pack);
  int threads = 64;
  while (threads < 512 && packs > threads) threads *= 2;
  return {threads, divide_up(packs, threads)};
}

}  // namespace mixtral::cuda
