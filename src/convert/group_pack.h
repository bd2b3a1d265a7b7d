#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

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

/// Packs a row; `importance` [columns] weighs the errors of its columns, or is empty: all alike.
/// `packed` gets the numbers that are kept.
void pack_group_row(std::span<const float> values, std::span<const float> importance,
                    const GroupRow& to, std::span<float> packed);

}  // namespace mixtral
