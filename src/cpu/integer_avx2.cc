// The integer kernels for AVX2; the flags are in src/CMakeLists.txt. Nothing here runs
// before integer_kernel_sets has looked at the processor.

#include "cpu/integer_kernels.h"

#if defined(__AVX2__)
#include "cpu/integer_products.h"

namespace mixtral::cpu {
namespace {
constexpr IntegerKernels kKernels = make_kernels("AVX2");
}  // namespace
const IntegerKernels* const kIntegerAvx2 = &kKernels;
}  // namespace mixtral::cpu
#else
namespace mixtral::cpu {
const IntegerKernels* const kIntegerAvx2 = nullptr;
}  // namespace mixtral::cpu
#endif
