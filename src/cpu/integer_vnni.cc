// The integer kernels for AVX-512 with VNNI; the flags are in src/CMakeLists.txt. Nothing here runs
// before integer_kernel_sets has looked at the processor.

#include "cpu/integer_kernels.h"

#if defined(__AVX512VNNI__)
#include "cpu/integer_products.h"

namespace mixtral::cpu {
namespace {
constexpr IntegerKernels kKernels = make_kernels("AVX-512 VNNI");
}  // namespace
const IntegerKernels* const kIntegerVnni = &kKernels;
}  // namespace mixtral::cpu
#else
namespace mixtral::cpu {
const IntegerKernels* const kIntegerVnni = nullptr;
}  // namespace mixtral::cpu
#endif
