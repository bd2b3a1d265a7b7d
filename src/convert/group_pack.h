#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ops/block_rounder.h"
#include "tensor/dtype.h"

namespace mixtral {

/// Where a row of MLX's groups goes: value = scale * code + bias. Codes stand end to end in 32-bit
/// words, the first in the lowest bits.
struct GroupRow {
  int bits = 4;
  int group = 64;
  Dtype dtype = Dtype::f32;  // of scales and biases
  int32_t* codes = nullptr;
  std::byte* scales = nullptr;
  std::byte* biases = nullptr;
};

/// Rounds a row number by number. Unit and block are a group.
std::unique_ptr<ops::BlockRounder> make_group_rounder(const GroupRow& to);

/// Packs a row, all of its errors alike. `packed` gets the numbers that are kept.
void pack_group_row(std::span<const float> values, const GroupRow& to, std::span<float> packed);

}  // namespace mixtral
