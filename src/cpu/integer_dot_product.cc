// The integer kernels for NEON with dot products; the flags are in src/CMakeLists.txt. Nothing here
// runs before integer_kernel_sets has looked at the processor.

#include "cpu/integer_kernels.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "cpu/integer_products.h"

namespace mixtral::cpu {
namespace {
constexpr IntegerKernels kKernels = make_kernels("NEON, dot product");
}  // namespace
const IntegerKernels* const kIntegerDotProduct = &kKernels;
}  // namespace mixtral::cpu
#else
namespace mixtral::cpu {
const IntegerKernels* const kIntegerDotProduct = nullptr;
}  // namespace mixtral::cpu
#endif
