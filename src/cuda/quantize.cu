#include <cuda_fp8.h>

#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/quantize_blocks.h"
#include "cuda/quantize_groups.h"
#include "cuda/status.h"
#include "ops/format_fp8.h"
#include "ops/format_nf4.h"
#include "ops/quantize.h"

// Packing and unpacking of fp8 and nf4. Unpacking: a thread writes packs of 16 bytes of y,
// neighbouring threads neighbouring packs, four of them each, so that enough loads are in flight;
// it reads 1 to 8 bytes of codes a pack, and the scales come from the cache. Bound by bandwidth,
// most of it y's. The grid's second dimension is the groups: blocks of a group without rows return
// at once. Packing: a warp a block of the format.
namespace mixtral::cuda {
namespace {

enum class Codec { fp8, nf4 };

constexpr ops::WeightFormat format_of(Codec codec) {
  return codec == Codec::fp8 ? ops::WeightFormat::fp8 : ops::WeightFormat::nf4;
}
/// Elements that share a scale.
template <Codec codec>
constexpr int kBlockOf = format_of(codec).row().block;
/// Bytes of the codes of `columns` elements.
template <Codec codec>
__host__ __device__ constexpr int64_t code_bytes(int64_t columns) {
  return codec == Codec::fp8 ? columns : (columns + 1) / 2;
}
template <Codec codec>
__host__ __device__ constexpr int64_t scale_count(int64_t columns) {
  return (columns + kBlockOf<codec> - 1) / kBlockOf<codec>;
}

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // of a thread

__constant__ float kLevels[16] = {
    ops::kNormalLevels[0],  ops::kNormalLevels[1],  ops::kNormalLevels[2],  ops::kNormalLevels[3],
    ops::kNormalLevels[4],  ops::kNormalLevels[5],  ops::kNormalLevels[6],  ops::kNormalLevels[7],
    ops::kNormalLevels[8],  ops::kNormalLevels[9],  ops::kNormalLevels[10], ops::kNormalLevels[11],
    ops::kNormalLevels[12], ops::kNormalLevels[13], ops::kNormalLevels[14], ops::kNormalLevels[15],
};
__constant__ float kMidpoints[15] = {
    ops::normal_midpoint(0),  ops::normal_midpoint(1),  ops::normal_midpoint(2),
    ops::normal_midpoint(3),  ops::normal_midpoint(4),  ops::normal_midpoint(5),
    ops::normal_midpoint(6),  ops::normal_midpoint(7),  ops::normal_midpoint(8),
    ops::normal_midpoint(9),  ops::normal_midpoint(10), ops::normal_midpoint(11),
    ops::normal_midpoint(12), ops::normal_midpoint(13), ops::normal_midpoint(14),
};

/// As ops::from_e4m3.
__device__ inline float from_e4m3(uint8_t code) {
  return __half2float(Half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

/// As ops::to_e4m3.
__device__ inline uint8_t to_e4m3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

__device__ inline int nearest_level(float t) {
  int level = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) level += t > kMidpoints[i] ? 1 : 0;
  return level;
}

/// The bytes of n codes, read in one access.
template <Codec codec, int n>
struct Codes {
  static constexpr int kBytes = codec == Codec::fp8 ? n : n / 2;
  Pack<uint8_t, kBytes> bytes;

  /// `levels` are nf4's, in shared memory: one a bank, so that lanes never wait for each other.
  __device__ float value(int i, const float* levels) const {
    if constexpr (codec == Codec::fp8)
      return from_e4m3(bytes.at[i]);
    else
      return levels[bytes.at[i / 2] >> (i % 2 * 4) & 15];
  }
};

/// Whether this block's group has no rows, so that nobody reads its weights.
__device__ inline bool unused(const int32_t* offsets) {
  return offsets && offsets[blockIdx.y] == offsets[blockIdx.y + 1];
}

/// Rows are whole packs, and blocks too: n elements share a scale. `whole`: rows are whole blocks,
/// so that places in y follow from each other without a division. `packs` are those of a group.
template <Codec codec, class T, int n, bool whole>
__global__ void __launch_bounds__(kThreads)
    dequantize(const uint8_t* codes, const float* scales, const int32_t* offsets, T* y,
               int64_t packs, int64_t columns) {
  if (unused(offsets)) return;
  constexpr int64_t kBlock = kBlockOf<codec>;
  using Read = Codes<codec, n>;
  __shared__ float levels[16];
  if (codec == Codec::nf4) {
    if (threadIdx.x < 16) levels[threadIdx.x] = kLevels[threadIdx.x];
    __syncthreads();
  }
  const int64_t end = (blockIdx.y + 1) * packs;
  const int64_t first =
      blockIdx.y * packs + int64_t{blockIdx.x} * (kThreads * kPacks) + threadIdx.x;
  Read read[kPacks];
  float scale[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t pack = first + k * kThreads;
    if (pack >= end) continue;
    read[k].bytes = *reinterpret_cast<const decltype(Read::bytes)*>(codes + pack * Read::kBytes);
    const int64_t element = pack * n;
    if constexpr (whole) {
      scale[k] = __ldg(scales + element / kBlock);
    } else {
      const int64_t row = element / columns, column = element - row * columns;
      scale[k] = __ldg(scales + row * scale_count<codec>(columns) + column / kBlock);
    }
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t pack = first + k * kThreads;
    if (pack >= end) continue;
    float values[n];
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = read[k].value(i, levels) * scale[k];
    store(y + pack * n, values);
  }
}

/// Any shape and alignment: one element at a time of the `count` of a group.
template <Codec codec, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_each(const uint8_t* codes, const float* scales, const int32_t* offsets, T* y,
                    int64_t count, int64_t columns) {
  if (unused(offsets)) return;
  const int64_t stride = int64_t{gridDim.x} * kThreads, end = (blockIdx.y + 1) * count;
  int64_t i = blockIdx.y * count + int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i < end; i += stride) {
    const int64_t row = i / columns, column = i - row * columns;
    const float scale = scales[row * scale_count<codec>(columns) + column / kBlockOf<codec>];
    const uint8_t* line = codes + row * code_bytes<codec>(columns);
    const float value = codec == Codec::fp8 ? from_e4m3(line[column])
                                            : kLevels[line[column / 2] >> (column % 2 * 4) & 15];
    y[i] = narrow<T>(value * scale);
  }
}

/// A warp takes a block: lane l the columns of the block from l · per on, which in nf4 are the two
/// of one byte. `n` is `per` where these can be read at once, else 1.
template <Codec codec, class T, int n>
__global__ void __launch_bounds__(kThreads)
    quantize(const T* x, uint8_t* codes, float* scales, int64_t blocks, int64_t columns) {
  constexpr int kBlock = kBlockOf<codec>;
  constexpr int per = kBlock / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t in_row = scale_count<codec>(columns);
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarp);
  int64_t block = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  for (; block < blocks; block += warps) {
    const int64_t row = block / in_row;
    const int64_t column = (block - row * in_row) * kBlock + lane * per;
    const T* from = x + row * columns + column;
    float values[per];
    float largest = 0;
    if constexpr (n == per) {
      if (column < columns) {
        load(from, values);
      } else {
#pragma unroll
        for (int i = 0; i < per; ++i) values[i] = 0;
      }
    } else {
#pragma unroll
      for (int i = 0; i < per; ++i) values[i] = column + i < columns ? widen<float>(from[i]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < per; ++i) largest = fmaxf(largest, fabsf(values[i]));
    largest = warp_reduce(largest, Max{});
    float scale = largest;
    if (codec == Codec::fp8 && largest > 0)
      scale = __uint_as_float(ops::fp8_scale_bits(__float_as_uint(largest)));
    if (lane == 0) scales[block] = scale;
    uint8_t* to = codes + row * code_bytes<codec>(columns);
    if constexpr (codec == Codec::fp8) {
#pragma unroll
      for (int i = 0; i < per; ++i)
        if (column + i < columns)
          to[column + i] = to_e4m3(largest > 0 ? __fdiv_rn(values[i], scale) : 0.0f);
    } else if (column < columns) {
      int byte = 0;
#pragma unroll
      for (int i = 0; i < per; ++i) {
        const float t = largest > 0 ? __fdiv_rn(values[i], scale) : 0.0f;
        if (column + i < columns) byte |= nearest_level(t) << (4 * i);
      }
      to[column / 2] = static_cast<uint8_t>(byte);
    }
  }
}

bool has_kernels(const ops::Weight& weight) {
  return (weight.format == ops::WeightFormat::fp8 || weight.format == ops::WeightFormat::nf4) &&
         weight.layout == ops::WeightLayout::rows;
}

/// Calls f with the format as a compile-time constant.
template <class F>
void with_codec(const ops::Weight& weight, F&& f) {
  CHECK(has_kernels(weight), "no kernel unpacks this format on a GPU");
  if (weight.format == ops::WeightFormat::fp8)
    f(std::integral_constant<Codec, Codec::fp8>{});
  else
    f(std::integral_constant<Codec, Codec::nf4>{});
}

}  // namespace

bool CudaBackend::has_format(ops::WeightFormat format) const {
  return format.dense() || format == ops::WeightFormat::fp8 || format == ops::WeightFormat::nf4 ||
         in_groups(format) || in_blocks(format);
}

ops::WeightLayout CudaBackend::preferred_layout(ops::WeightFormat format,
                                                const Shape& shape) const {
  constexpr auto kPlanes = ops::WeightLayout::planes;
  return in_blocks(format) && has_layout(format, shape, kPlanes) ? kPlanes
                                                                 : ops::WeightLayout::rows;
}

bool CudaBackend::change_layout(const ops::Weight& weight, ops::WeightLayout layout) {
  use_device();
  return in_blocks(weight.format) && change_planes(weight, layout, processors_, stream_);
}

void CudaBackend::run(const ops::Quantize& op) {
  use_device();
  if (in_groups(op.weight.format)) return quantize_groups(op, processors_, stream_);
  if (in_blocks(op.weight.format)) return quantize_blocks(op, stream_);
  const int64_t blocks_here = op.weight.scales.numel(), columns = op.x.dim(1);
  if (blocks_here == 0) return;
  const int64_t most = int64_t{processors_} * 64;
  const unsigned grid = blocks(std::min(divide_up(blocks_here, kThreads / kWarp), most));
  with_float(op.x.dtype(), [&](auto x) {
    using T = type_of<decltype(x)>;
    with_codec(op.weight, [&](auto constant) {
      constexpr Codec codec = constant();
      constexpr int per = kBlockOf<codec> / kWarp;
      with_packs<per>(columns, {op.x}, [&](auto pack) {
        quantize<codec, T, pack()>
            <<<grid, kThreads, 0, stream_>>>(data<T>(op.x), data<uint8_t>(op.weight.codes),
                                             data<float>(op.weight.scales), blocks_here, columns);
      });
    });
  });
  check_launch("quantize");
}

void CudaBackend::run(const ops::Dequantize& op) {
  use_device();
  const int64_t columns = op.y.dim(1);
  if (op.y.numel() == 0) return;
  // The product for dx reads weights in steps of 64 rows. Beyond a group's end it multiplies the
  // next group's weights by zero, so those must be numbers.
  const int64_t every = op.offsets ? op.offsets.dim(0) - 1 : 1;
  const int64_t groups = op.y.dim(0) / every % 64 == 0 ? every : 1;
  if (in_groups(op.weight.format)) return dequantize_groups(op, groups, processors_, stream_);
  if (in_blocks(op.weight.format)) return dequantize_blocks(op, groups, stream_);
  const int32_t* offsets = groups > 1 ? data<int32_t>(op.offsets) : nullptr;
  const int64_t count = op.y.numel() / groups;  // of a group
  const auto grid = [&](int64_t wide) { return dim3(blocks(wide), static_cast<unsigned>(groups)); };
  with_float(op.y.dtype(), [&](auto y) {
    using T = type_of<decltype(y)>;
    with_codec(op.weight, [&](auto constant) {
      constexpr Codec codec = constant();
      constexpr int n = kPackOf<T>;
      constexpr int bytes = Codes<codec, n>::kBytes;
      const auto* codes = data<uint8_t>(op.weight.codes);
      const auto* scales = data<float>(op.weight.scales);
      // A pack's codes start at a multiple of their bytes, since a row's do.
      const bool aligned = packs(n, columns, {op.y}) &&
                           reinterpret_cast<uintptr_t>(codes) % static_cast<uintptr_t>(bytes) == 0;
      if (!aligned) {
        const int64_t most = int64_t{processors_} * 32;
        dequantize_each<codec, T>
            <<<grid(std::min(divide_up(count, kThreads), most)), kThreads, 0, stream_>>>(
                codes, scales, offsets, data<T>(op.y), count, columns);
        return;
      }
      const auto run = [&](auto whole) {
        dequantize<codec, T, n, whole()>
            <<<grid(divide_up(count / n, kThreads * kPacks)), kThreads, 0, stream_>>>(
                codes, scales, offsets, data<T>(op.y), count / n, columns);
      };
      if (columns % kBlockOf<codec> == 0)
        run(std::true_type{});
      else
        run(std::false_type{});
    });
  });
  check_launch("dequantize");
}

}  // namespace mixtral::cuda
