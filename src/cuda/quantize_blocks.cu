#include <algorithm>
#include <limits>
#include <type_traits>

#include "cuda/aligned.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/quantize_blocks.h"
#include "cuda/status.h"
#include "ops/block_planes.h"

// GGUF's q8_0, q4_0 and q4_k on a GPU: packing and unpacking to the bit as ops/format_q.cc and
// ops/format_k.cc do it, and the change between the rows of a file and planes. Unpacking: a thread
// writes 8 numbers at a time; bound by bandwidth, most of it y's.
namespace mixtral::cuda {
namespace {

using ops::BlockPlanes;
using ops::kUnitColumns;

constexpr int kThreads = 256;
constexpr int kUnits = 4;                // of a thread, of 8 numbers
constexpr int kMostRowBytes = 96 << 10;  // of a row in shared memory

enum class Blocks { q8_0, q4_0, q4_k };

constexpr ops::WeightFormat format_of(Blocks blocks) {
  return blocks == Blocks::q8_0   ? ops::WeightFormat::q8_0
         : blocks == Blocks::q4_0 ? ops::WeightFormat::q4_0
                                  : ops::WeightFormat::q4_k;
}
template <Blocks blocks>
constexpr BlockPlanes kPlanes = ops::planes_of(format_of(blocks));

/// Calls f with the format as a constant.
template <class F>
void with_blocks(ops::WeightFormat format, F&& f) {
  if (format == ops::WeightFormat::q8_0) return f(std::integral_constant<Blocks, Blocks::q8_0>{});
  if (format == ops::WeightFormat::q4_0) return f(std::integral_constant<Blocks, Blocks::q4_0>{});
  CHECK(format == ops::WeightFormat::q4_k, "no kernel takes blocks of this format on a GPU");
  f(std::integral_constant<Blocks, Blocks::q4_k>{});
}

/// In a file's rows halves stand anywhere.
template <bool aligned>
__device__ inline float half_at(const uint8_t* bytes) {
  if constexpr (aligned) return __half2float(*reinterpret_cast<const Half*>(bytes));
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bytes[0] | bytes[1] << 8)));
}

/// What the codes of 32 columns are multiplied by, and what is taken off then.
struct Scale {
  float step, least;
};
template <Blocks blocks, bool aligned>
__device__ inline Scale scale_of(const uint8_t* header, int block_of_32) {
  if constexpr (blocks != Blocks::q4_k) return {half_at<aligned>(header), 0};
  const uint8_t* own = header + 4;
  const int j = block_of_32;
  int scale = own[j] & 63, minimum = own[j + 4] & 63;
  if (j >= 4) {
    scale = (own[j + 4] & 15) | (own[j - 4] >> 6) << 4;
    minimum = own[j + 4] >> 4 | (own[j] >> 6) << 4;
  }
  return {__fmul_rn(half_at<aligned>(header), static_cast<float>(scale)),
          __fmul_rn(half_at<aligned>(header + 2), static_cast<float>(minimum))};
}

template <Blocks blocks>
__device__ inline float value_of(uint64_t codes, int i, const Scale& scale) {
  if constexpr (blocks == Blocks::q8_0)
    return static_cast<float>(static_cast<int8_t>(codes >> (8 * i))) * scale.step;
  const int code = static_cast<int>(codes >> (4 * i)) & 15;
  if constexpr (blocks == Blocks::q4_0) return static_cast<float>(code - 8) * scale.step;
  return __fsub_rn(__fmul_rn(scale.step, static_cast<float>(code)), scale.least);
}

/// `units` are those of a group, `packed`: y can be written 16 bytes at a time.
template <Blocks blocks, bool planes, bool packed, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(const uint8_t* weight, const int* offsets, T* y, uint32_t units, int columns) {
  if (offsets && offsets[blockIdx.y] == offsets[blockIdx.y + 1]) return;
  constexpr BlockPlanes p = kPlanes<blocks>;
  const auto in_row = static_cast<uint32_t>(columns / kUnitColumns);
  const int64_t row_bytes = int64_t{columns / p.columns} * p.block_bytes();
  const int64_t before = blockIdx.y * int64_t{units};
  weight += before / in_row * row_bytes;
  y += before * kUnitColumns;
  const uint32_t first = blockIdx.x * (kThreads * kUnits) + threadIdx.x;
  uint64_t codes[kUnits];
  Scale scales[kUnits];
#pragma unroll
  for (int k = 0; k < kUnits; ++k) {
    const uint32_t at = first + k * kThreads;
    if (at >= units) continue;
    const uint32_t row = at / in_row;
    const auto unit = static_cast<int>(at - row * in_row);
    const uint8_t* from = weight + row * row_bytes;
    const int block = unit * kUnitColumns / p.columns;
    const uint8_t* header;
    if constexpr (planes) {
      const auto* words =
          reinterpret_cast<const uint32_t*>(from + ops::place_of_unit(unit) * p.bits);
      codes[k] = words[0];
      if constexpr (p.bits == 8) codes[k] |= uint64_t{words[1]} << 32;
      header = from + columns * p.bits / 8 + block * p.header;
    } else {
      codes[k] = ops::unit_of_file(p, from, unit);
      header = from + block * p.block_bytes();
    }
    scales[k] = scale_of<blocks, planes>(header, unit * kUnitColumns % p.columns / 32);
  }
#pragma unroll
  for (int k = 0; k < kUnits; ++k) {
    const int64_t at = first + k * kThreads;
    if (at >= units) continue;
    float values[kUnitColumns];
#pragma unroll
    for (int i = 0; i < kUnitColumns; ++i) values[i] = value_of<blocks>(codes[k], i, scales[k]);
    if constexpr (packed) {
      store(y + at * kUnitColumns, values);
    } else {
#pragma unroll
      for (int i = 0; i < kUnitColumns; ++i) y[at * kUnitColumns + i] = narrow<T>(values[i]);
    }
  }
}

/// A thread packs a block of 32.
template <Blocks blocks, class T>
__global__ void __launch_bounds__(kThreads)
    quantize(const T* x, uint8_t* weight, int64_t count, int columns) {
  constexpr BlockPlanes p = kPlanes<blocks>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  float values[p.columns], extreme = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < p.columns; ++i) {
    values[i] = widen<float>(x[index * p.columns + i]);
    if (!(fabsf(values[i]) > largest)) continue;
    largest = fabsf(values[i]);
    extreme = values[i];
  }
  const float scale =
      blocks == Blocks::q8_0 ? __fdiv_rn(largest, 127.0f) : __fdiv_rn(extreme, -8.0f);
  const float reciprocal = scale != 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
  uint8_t* to = weight + index * p.block_bytes();
  // By way of a pair: of a single half, CUDA 13.0's ptxas stores the number itself, as an integer
  // of 8 bits, in place of the lower byte.
  const __half2 rounded = __floats2half2_rn(scale, 0.0f);
  const auto word = reinterpret_cast<const uint32_t&>(rounded);
  to[0] = static_cast<uint8_t>(word);
  to[1] = static_cast<uint8_t>(word >> 8);
  to += p.header;
#pragma unroll
  for (int i = 0; i < p.code_bytes(); ++i) {
    const auto code = [&](int column) {
      const float scaled = __fmul_rn(values[column], reciprocal);
      if constexpr (blocks == Blocks::q8_0) return static_cast<int>(roundf(scaled));
      return min(15, static_cast<int>(static_cast<int8_t>(__fadd_rn(scaled, 8.5f))));
    };
    if constexpr (blocks == Blocks::q8_0)
      to[i] = static_cast<uint8_t>(code(i));
    else
      to[i] = static_cast<uint8_t>((code(i) & 15) | (code(i + p.run) & 15) << 4);
  }
}

/// A block takes a row at a time, by way of shared memory.
template <Blocks blocks, bool to_planes>
__global__ void __launch_bounds__(kThreads) change(uint8_t* weight, int64_t rows, int columns) {
  extern __shared__ __align__(16) uint8_t row[];
  constexpr BlockPlanes p = kPlanes<blocks>;
  const int in_row = columns / p.columns, bytes = in_row * p.block_bytes();
  const int code_bytes = in_row * p.code_bytes();
  const int first = static_cast<int>(threadIdx.x);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    uint8_t* line = weight + r * bytes;
    for (int i = first; i < bytes; i += kThreads) row[i] = line[i];
    __syncthreads();
    if constexpr (to_planes) {
      for (int unit = first; unit < columns / kUnitColumns; unit += kThreads) {
        const uint64_t codes = ops::unit_of_file(p, row, unit);
        auto* to = reinterpret_cast<uint32_t*>(line + ops::place_of_unit(unit) * p.bits);
        to[0] = static_cast<uint32_t>(codes);
        if constexpr (p.bits == 8) to[1] = static_cast<uint32_t>(codes >> 32);
      }
      for (int i = first; i < bytes - code_bytes; i += kThreads)
        line[code_bytes + i] = row[i / p.header * p.block_bytes() + i % p.header];
    } else {
      for (int i = first; i < bytes; i += kThreads) {
        const int block = i / p.block_bytes(), at = i % p.block_bytes();
        line[i] = at < p.header ? row[code_bytes + block * p.header + at]
                                : ops::file_byte_of_planes(p, row, block, at - p.header);
      }
    }
    __syncthreads();
  }
}

}  // namespace

bool in_blocks(ops::WeightFormat format) { return static_cast<bool>(ops::planes_of(format)); }

void quantize_blocks(const ops::Quantize& op, cudaStream_t stream) {
  CHECK(op.weight.format.row().pack, "a format that is only read");
  const int64_t columns = op.x.dim(1), count = op.x.numel() / op.weight.format.row().block;
  if (count == 0) return;
  with_float(op.x.dtype(), [&](auto x) {
    using T = type_of<decltype(x)>;
    with_blocks(op.weight.format, [&](auto constant) {
      if constexpr (constant() != Blocks::q4_k)
        quantize<constant()><<<blocks(divide_up(count, kThreads)), kThreads, 0, stream>>>(
            data<T>(op.x), data<uint8_t>(op.weight.codes), count, static_cast<int>(columns));
    });
  });
  check_launch("quantize");
}

void dequantize_blocks(const ops::Dequantize& op, int64_t groups, cudaStream_t stream) {
  const int64_t columns = op.y.dim(1), units = op.y.numel() / groups / kUnitColumns;
  const int* offsets = groups > 1 ? data<int>(op.offsets) : nullptr;
  const bool planes = op.weight.layout == ops::WeightLayout::planes;
  CHECK(!planes || aligned(op.weight.codes, 4), "planes that are not aligned");
  CHECK(units <= std::numeric_limits<int32_t>::max(), "a group of less than 2^34 numbers");
  const dim3 grid(blocks(divide_up(units, kThreads * kUnits)), static_cast<unsigned>(groups));
  with_float(op.y.dtype(), [&](auto y) {
    using T = type_of<decltype(y)>;
    with_blocks(op.weight.format, [&](auto constant) {
      const auto run = [&](auto is_planes, auto is_packed) {
        dequantize<constant(), is_planes(), is_packed()>
            <<<grid, kThreads, 0, stream>>>(data<uint8_t>(op.weight.codes), offsets, data<T>(op.y),
                                            units, static_cast<int>(columns));
      };
      const auto with_layout = [&](auto is_packed) {
        if (planes)
          run(std::true_type{}, is_packed);
        else
          run(std::false_type{}, is_packed);
      };
      if (packs(kPackOf<T>, columns, {op.y}))
        with_layout(std::true_type{});
      else
        with_layout(std::false_type{});
    });
  });
  check_launch("dequantize");
}

bool change_planes(const ops::Weight& weight, ops::WeightLayout to, int processors,
                   cudaStream_t stream) {
  const int64_t row_bytes = weight.codes.dim(1);
  if (row_bytes > kMostRowBytes || !aligned(weight.codes, 4)) return false;
  if (weight.rows() == 0) return true;
  const auto grid = blocks(std::min(weight.rows(), int64_t{processors} * 16));
  with_blocks(weight.format, [&](auto constant) {
    const auto run = [&](auto to_planes) {
      const auto kernel = change<constant(), to_planes()>;
      check_cuda(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostRowBytes),
          "changing a layout");
      kernel<<<grid, kThreads, static_cast<size_t>(row_bytes), stream>>>(
          data<uint8_t>(weight.codes), weight.rows(), static_cast<int>(weight.inputs()));
    };
    if (to == ops::WeightLayout::planes)
      run(std::true_type{});
    else
      run(std::false_type{});
  });
  check_launch("changing a layout");
  return true;
}

}  // namespace mixtral::cuda
