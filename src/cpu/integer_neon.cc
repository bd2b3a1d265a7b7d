// The integer kernels for NEON; the flags are in src/CMakeLists.txt. Nothing here runs
// before integer_kernel_sets has looked at the processor.

#include "cpu/integer_kernels.h"

#if defined(__aarch64__)
#include "cpu/integer_products.h"

namespace mixtral::cpu {
namespace {
constexpr IntegerKernels kKernels = make_kernels("NEON");
}  // namespace
const IntegerKernels* const kIntegerNeon = &kKernels;
}  // namespace mixtral::cpu
#else
namespace mixtral::cpu {
const IntegerKernels* const kIntegerNeon = nullptr;
}  // namespace mixtral::cpu
#endif
