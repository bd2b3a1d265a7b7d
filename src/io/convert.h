#pragma once

#include <cstddef>

#include "tensor/dtype.h"

namespace mixtral {

/// Copies `count` elements of host memory from one dtype to another; neither side need be aligned,
/// and they must not overlap. Between floating-point types it rounds to nearest even; integers only
/// go to their own type. Throws InternalError for any other pair (see `convertible`).
void convert_elements(const std::byte* from, Dtype from_dtype, std::byte* to, Dtype to_dtype,
                      int64_t count);

/// Whether convert_elements takes this pair.
constexpr bool convertible(Dtype from, Dtype to) {
  return from == to || (is_float(from) && is_float(to));
}

/// The index of the first NaN or infinity among `count` elements, or -1. Integers have none.
int64_t find_non_finite(const std::byte* data, Dtype dtype, int64_t count);

}  // namespace mixtral
