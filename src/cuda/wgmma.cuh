#pragma once

#include <cstddef>
#include <cstdint>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

/// Operands of wgmma in shared memory: boxes of rows of 128 bytes, swizzled in pieces of 16 bytes.
namespace mixtral::cuda {

constexpr int kRowBytes = 128;
constexpr int kPieces = kRowBytes / 16;

/// The offset of a piece of 16 bytes of a row in a box.
__device__ inline int swizzled(int row, int piece) {
  return row * kRowBytes + (piece ^ (row % 8)) * 16;
}

/// The descriptor of an operand: a swizzle of 128 bytes (1 in bits 62-63); the address, and the
/// offsets from box to box and from 8 rows to the next 8, in units of 16 bytes.
__device__ inline uint64_t operand(const void* shared, int box_bytes) {
  const uint64_t address = cute::cast_smem_ptr_to_uint(shared);
  return (address & 0x3FFFF) >> 4 | static_cast<uint64_t>(box_bytes >> 4) << 16 |
         uint64_t{8 * kRowBytes >> 4} << 32 | uint64_t{1} << 62;
}

template <class Mma, int n, size_t... i>
__device__ __forceinline__ void multiply_add(
    uint64_t a, uint64_t b, float (&d)[n], std::index_sequence<i...>,
    cute::SM90::GMMA::ScaleOut before = cute::SM90::GMMA::ScaleOut::One) {
  Mma::fma(a, b, d[i]..., before);
}
/// The same with the left operand in registers.
template <class Mma, int n, size_t... i>
__device__ __forceinline__ void multiply_add(const uint32_t* a, uint64_t b, float (&d)[n],
                                             std::index_sequence<i...>) {
  Mma::fma(a[0], a[1], a[2], a[3], b, d[i]...);
}

/// Keeps the compiler from moving accesses of the accumulators across this point.
template <int n>
__device__ __forceinline__ void keep_in_order(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) cute::warpgroup_fence_operand(d[i]);
}

/// An index in a ring of `size` stages, and the phase (parity) of the round, as barriers wait for
/// it.
template <int size>
struct PipelineState {
  int index = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++index == size) index = 0, phase ^= 1;
  }
};

}  // namespace mixtral::cuda
