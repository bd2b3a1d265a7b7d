// The integer kernels for AVX-512 with VNNI, one bundle of outputs at a time in vectors of 32
// bytes; the flags are in src/CMakeLists.txt. Nothing here runs before integer_kernel_sets has
// looked at the processor.

#include "cpu/integer_kernels.h"

#if defined(__AVX512VNNI__)
#define MIXTRAL_ONE_BUNDLE
#include "cpu/integer_products.h"

namespace mixtral::cpu {
namespace {
constexpr IntegerKernels kKernels = make_kernels("AVX-512 VNNI, one bundle");
}  // namespace
const IntegerKernels* const kIntegerVnniNarrow = &kKernels;
}  // namespace mixtral::cpu
#else
namespace mixtral::cpu {
const IntegerKernels* const kIntegerVnniNarrow = nullptr;
}  // namespace mixtral::cpu
#endif
