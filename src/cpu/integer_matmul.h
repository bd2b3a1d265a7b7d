#pragma once

#include <optional>
#include <vector>

#include "cpu/integer_kernels.h"
#include "ops/matmul.h"

namespace mixtral::cpu {

/// The best kernels for this processor, among the instruction sets that Highway may use; or null.
const IntegerKernels* integer_kernels();
/// The best that read one bundle at a time, for few rows: what bounds them is the memory, which
/// gives one stream of weights faster than two.
const IntegerKernels* narrow_integer_kernels();
/// All that this processor can run, the best first: for tests.
std::vector<const IntegerKernels*> integer_kernel_sets();

/// The kernels' index of a format, where they have one.
std::optional<IntegerFormat> integer_format(ops::WeightFormat format);

}  // namespace mixtral::cpu
