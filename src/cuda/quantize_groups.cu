#include <bit>
#include <limits>

#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/quantize_groups.h"
#include "cuda/status.h"

// Packing and unpacking of integers of 4 and 8 bits in groups with a scale and a minimum, as
// ops/format_groups.cc does it. Unpacking: a thread writes packs of 16 bytes of y, four of them, so
// that enough loads are in flight; bound by bandwidth, most of it y's. Packing: a warp a group.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // of a thread

struct Groups {
  uint8_t* codes;
  void *scales, *minima;
  int64_t rows, columns;
  int shift;  // log2 of the elements of a group

  __host__ __device__ int block() const { return 1 << shift; }
  __host__ __device__ int64_t in_row() const { return (columns + block() - 1) >> shift; }
  template <int bits>
  __host__ __device__ int64_t code_bytes() const {
    return (columns * bits + 7) / 8;
  }
};

template <int bits>
__device__ inline int code_at(const uint8_t* line, int64_t column) {
  if constexpr (bits == 8) return line[column];
  return line[column / 2] >> (column % 2 * 4) & 15;
}

/// Rows are whole packs, each within a group. The grid's second dimension is the weight's groups:
/// those without rows are left alone. `packs` are those of one.
template <int bits, int n, class S, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(Groups from, const int* offsets, T* y, uint32_t packs) {
  if (offsets && offsets[blockIdx.y] == offsets[blockIdx.y + 1]) return;
  constexpr int kBytes = n * bits / 8;
  // Within the weight's group, counted in 32 bits: divisions are the most of the work.
  const uint32_t first = blockIdx.x * (kThreads * kPacks) + threadIdx.x;
  const int64_t before = blockIdx.y * int64_t{packs};
  const auto in_row = static_cast<uint32_t>(from.columns / n);
  const int64_t row_before = before / in_row;
  Pack<uint8_t, kBytes> codes[kPacks];
  float scale[kPacks], minimum[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const uint32_t pack = first + k * kThreads;
    if (pack >= packs) continue;
    codes[k] =
        *reinterpret_cast<const Pack<uint8_t, kBytes>*>(from.codes + (before + pack) * kBytes);
    const uint32_t row = pack / in_row, column = (pack - row * in_row) * n;
    const int64_t group = (row_before + row) * from.in_row() + (column >> from.shift);
    scale[k] = widen<float>(static_cast<const S*>(from.scales)[group]);
    minimum[k] = widen<float>(static_cast<const S*>(from.minima)[group]);
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const uint32_t pack = first + k * kThreads;
    if (pack >= packs) continue;
    float values[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int code = bits == 8 ? codes[k].at[i] : codes[k].at[i * bits / 8] >> (i % 2 * 4) & 15;
      values[i] = static_cast<float>(code) * scale[k] + minimum[k];
    }
    store(y + (before + pack) * n, values);
  }
}

/// Any shape and alignment: one element at a time of the `count` of a group.
template <int bits, class S, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_each(Groups from, const int* offsets, T* y, int64_t count) {
  if (offsets && offsets[blockIdx.y] == offsets[blockIdx.y + 1]) return;
  const int64_t stride = int64_t{gridDim.x} * kThreads, end = (blockIdx.y + 1) * count;
  int64_t i = blockIdx.y * count + int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i < end; i += stride) {
    const int64_t row = i / from.columns, column = i - row * from.columns;
    const int64_t group = row * from.in_row() + (column >> from.shift);
    const int code = code_at<bits>(from.codes + row * from.code_bytes<bits>(), column);
    y[i] = narrow<T>(static_cast<float>(code) *
                         widen<float>(static_cast<const S*>(from.scales)[group]) +
                     widen<float>(static_cast<const S*>(from.minima)[group]));
  }
}

/// As ops::group_scale.
__device__ inline float2 scale_and_minimum(float least, float greatest, float most) {
  if (least == greatest) return {0, least};
  const bool below = fabsf(least) > fabsf(greatest);
  const float edge = below ? least : greatest;
  const float width = __fdiv_rn(greatest - least, most);
  const float scale = below ? width : -width;
  const float code_of_zero = rintf(__fdiv_rn(edge, scale));
  if (code_of_zero != 0) return {__fdiv_rn(edge, code_of_zero), edge};
  return {scale, 0};
}

/// A warp takes a group; in 4 bits a lane takes pairs of columns, which share a byte.
template <int bits, class S, class T>
__global__ void __launch_bounds__(kThreads) quantize(const T* x, Groups to) {
  constexpr float kMost = bits == 8 ? 255 : 15;
  constexpr int kMostValues = 128 / kWarp;  // of a lane
  const int lane = threadIdx.x % kWarp, per = to.block() / kWarp;
  const int64_t in_row = to.in_row(), count = to.rows * in_row;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarp);
  int64_t group = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  for (; group < count; group += warps) {
    const int64_t row = group / in_row, begin = (group - row * in_row) * to.block();
    // Pairs of columns 2 · lane, 2 · lane + 64; single ones where a group has but 32.
    const auto column_of = [&](int i) {
      return begin + (per == 1 ? lane : i / 2 * (2 * kWarp) + 2 * lane + i % 2);
    };
    float values[kMostValues] = {};
    float least = INFINITY, greatest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kMostValues; ++i) {
      if (i >= per || column_of(i) >= to.columns) continue;
      values[i] = widen<float>(x[row * to.columns + column_of(i)]);
      least = fminf(least, values[i]);
      greatest = fmaxf(greatest, values[i]);
    }
    greatest = warp_reduce(greatest, Max{});
    least = -warp_reduce(-least, Max{});
    const float2 exact = scale_and_minimum(least, greatest, kMost);
    const S scale = narrow<S>(exact.x), minimum = narrow<S>(exact.y);
    if (lane == 0) {
      static_cast<S*>(to.scales)[group] = scale;
      static_cast<S*>(to.minima)[group] = minimum;
    }
    const auto step = widen<float>(scale), lowest = widen<float>(minimum);
    uint8_t* line = to.codes + row * to.code_bytes<bits>();
#pragma unroll
    for (int i = 0; i < kMostValues; ++i) {
      const float t = step != 0 ? rintf(__fdiv_rn(values[i] - lowest, step)) : 0.0f;
      int code = t > 0 ? static_cast<int>(fminf(t, kMost)) : 0;
      const int64_t column = column_of(i);
      if (column >= to.columns) code = 0;
      if constexpr (bits == 4) {
        // The lane of the even column writes both.
        const int beside = __shfl_down_sync(kAllLanes, code, 1);
        const int next = per == 1 ? (lane + 1 < kWarp ? beside : 0) : 0;
        if (i >= per || column >= to.columns) continue;
        if (per == 1) {
          if (lane % 2 == 0) line[column / 2] = static_cast<uint8_t>(code | next << 4);
        } else {
          values[i] = static_cast<float>(code);
          if (i % 2 == 1)
            line[column / 2] = static_cast<uint8_t>(static_cast<int>(values[i - 1]) | code << 4);
          else if (column + 1 >= to.columns)
            line[column / 2] = static_cast<uint8_t>(code);
        }
      } else if (i < per && column < to.columns) {
        line[column] = static_cast<uint8_t>(code);
      }
    }
  }
}

Groups groups_of(const ops::Weight& weight, int64_t columns) {
  return {data<uint8_t>(weight.codes),
          weight.scales.data(),
          weight.minima.data(),
          weight.codes.dim(0),
          columns,
          std::countr_zero(static_cast<unsigned>(weight.format.row().block))};
}

/// Calls f with the bits of a code and the type of scales.
template <class F>
void with_format(const ops::FormatRow& row, F&& f) {
  const auto with_scale = [&](auto bits) {
    if (row.scale_type == Dtype::f16)
      f(bits, Type<Half>{});
    else
      f(bits, Type<Bf16>{});
  };
  if (row.bits == 8)
    with_scale(std::integral_constant<int, 8>{});
  else
    with_scale(std::integral_constant<int, 4>{});
}

}  // namespace

bool in_groups(ops::WeightFormat format) {
  const ops::FormatRow& row = format.row();
  return row.kind == ops::FormatKind::separate && row.offset == ops::BlockOffset::minimum &&
         (row.bits == 4 || row.bits == 8) && row.block % kWarp == 0 && row.block <= 128 &&
         std::has_single_bit(static_cast<unsigned>(row.block)) && size_of(row.scale_type) == 2 &&
         row.minimum_type == row.scale_type && row.super_block == 0;
}

void quantize_groups(const ops::Quantize& op, int processors, cudaStream_t stream) {
  const Groups to = groups_of(op.weight, op.x.dim(1));
  const int64_t count = to.rows * to.in_row();
  if (count == 0) return;
  const unsigned grid =
      blocks(std::min(divide_up(count, kThreads / kWarp), int64_t{processors} * 64));
  with_float(op.x.dtype(), [&](auto x) {
    with_format(op.weight.format.row(), [&](auto bits, auto scale) {
      using T = type_of<decltype(x)>;
      quantize<bits(), type_of<decltype(scale)>><<<grid, kThreads, 0, stream>>>(data<T>(op.x), to);
    });
  });
  check_launch("quantize");
}

void dequantize_groups(const ops::Dequantize& op, int64_t groups, int processors,
                       cudaStream_t stream) {
  const int64_t columns = op.y.dim(1), count = op.y.numel() / groups;
  const int* offsets = groups > 1 ? data<int>(op.offsets) : nullptr;
  const Groups from = groups_of(op.weight, columns);
  with_float(op.y.dtype(), [&](auto y) {
    with_format(op.weight.format.row(), [&](auto bits, auto scale) {
      using T = type_of<decltype(y)>;
      using S = type_of<decltype(scale)>;
      constexpr int n = kPackOf<T>;
      constexpr uintptr_t kBytes = n * bits() / 8;
      const bool aligned = count / n <= std::numeric_limits<int32_t>::max() &&
                           packs(n, columns, {op.y}) &&
                           reinterpret_cast<uintptr_t>(from.codes) % kBytes == 0;
      const auto grid = [&](int64_t wide) {
        return dim3(blocks(wide), static_cast<unsigned>(groups));
      };
      if (aligned)
        dequantize<bits(), n, S>
            <<<grid(divide_up(count / n, kThreads * kPacks)), kThreads, 0, stream>>>(
                from, offsets, data<T>(op.y), static_cast<uint32_t>(count / n));
      else
        dequantize_each<bits(), S>
            <<<grid(std::min(divide_up(count, kThreads), int64_t{processors} * 32)), kThreads, 0,
               stream>>>(from, offsets, data<T>(op.y), count);
    });
  });
  check_launch("dequantize");
}

}  // namespace mixtral::cuda
