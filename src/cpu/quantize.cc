// Packing and unpacking weights. fp8 and nf4 have kernels here: a block at a time, in one pass over
// memory, which bounds unpacking. Other formats and layouts take the format's own functions, a row
// at a time.

#include "ops/quantize.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"
#include "ops/format_fp8.h"
#include "ops/format_nf4.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/quantize.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

using ByteTag = hn::Rebind<uint8_t, FloatTag>;

/// Calls body(element, code, block, count): blocks [begin, end) of all rows' blocks, each with its
/// first element, the byte of its first code, and its length.
template <class Body>
HWY_INLINE void for_blocks(ops::WeightFormat format, int64_t columns, int64_t begin, int64_t end,
                           const Body& body) {
  const int64_t size = format.row().block;
  const int64_t in_row = format.scales(columns);
  const int64_t row_bytes = format.codes(columns);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block / in_row, first = block % in_row * size;
    body(row * columns + first, row * row_bytes + format.codes(first), block,
         std::min(size, columns - first));
  }
}

HWY_INLINE Words load_bytes(const uint8_t* p, int64_t count) {
  uint8_t lanes[kLanes] = {};
  if (count < kLanes) {
    std::memcpy(lanes, p, static_cast<size_t>(count));
    p = lanes;
  }
  Words r;
  for (int i = 0; i < kParts; ++i)
    r.part[i] = hn::PromoteTo(WordTag(), hn::LoadU(ByteTag(), p + i * kPartLanes));
  return r;
}
HWY_INLINE void store_bytes(const Words& a, uint8_t* p, int64_t count) {
  uint8_t lanes[kLanes];
  uint8_t* to = count < kLanes ? lanes : p;
  for (int i = 0; i < kParts; ++i)
    hn::StoreU(hn::TruncateTo(ByteTag(), a.part[i]), ByteTag(), to + i * kPartLanes);
  if (count < kLanes) std::memcpy(p, lanes, static_cast<size_t>(count));
}

/// As ops::to_e4m3.
HWY_INLINE Words to_e4m3(const Floats& a) {
  const Words bits = as_words(a);
  const Words magnitude = bits & broadcast_word(0x7fffffff);
  const Words rebased = magnitude - broadcast_word(120u << 23);
  const Words odd = shift_right<20>(rebased) & broadcast_word(1);
  const Words normal = shift_right<20>(rebased + odd + broadcast_word(0x7ffff));
  const Words small =
      as_words(as_floats(magnitude) + broadcast(16384.0f)) - as_words(broadcast(16384.0f));
  const Words code = select(less_signed(magnitude, broadcast_word(0x3c800000)), small, normal);
  return code | (shift_right<24>(bits) & broadcast_word(0x80));
}

HWY_INLINE Words nearest_level(const Floats& t) {
  Words level = broadcast_word(0);
  for (int i = 0; i < 15; ++i)
    level = level + select(less(broadcast(ops::normal_midpoint(i)), t), broadcast_word(1),
                           broadcast_word(0));
  return level;
}

template <class T>
HWY_INLINE float largest_magnitude(const T* x, int64_t count) {
  Floats most = broadcast(0);
  for_lanes(count, [&](int64_t i, int64_t n) HWY_ATTR {
    most = maximum(most, as_floats(as_words(load_n(x + i, n)) & broadcast_word(0x7fffffff)));
  });
  return lane_max(most);
}

template <class T>
void quantize(const ops::Quantize& op, int64_t begin, int64_t end) {
  const bool fp8 = op.weight.format == ops::WeightFormat::fp8;
  const T* all = op.x.as<T>();
  auto* all_codes = op.weight.codes.as<uint8_t>();
  auto* scales = op.weight.scales.as<float>();
  for_blocks(op.weight.format, op.x.dim(1), begin, end,
             [&](int64_t element, int64_t byte, int64_t block, int64_t count) HWY_ATTR {
               const T* x = all + element;
               uint8_t* codes = all_codes + byte;
               const float largest = largest_magnitude(x, count);
               float scale = largest;
               if (fp8 && largest > 0)
                 scale =
                     std::bit_cast<float>(ops::fp8_scale_bits(std::bit_cast<uint32_t>(largest)));
               scales[block] = scale;
               const Floats divisor = broadcast(largest > 0 ? scale : 1.0f);
               if (fp8) {
                 for_lanes(count, [&](int64_t i, int64_t n) HWY_ATTR {
                   // A block of zeros has codes of +0, whatever their signs.
                   const Floats t = largest > 0 ? load_n(x + i, n) / divisor : broadcast(0);
                   store_bytes(to_e4m3(t), codes + i, n);
                 });
                 return;
               }
               uint8_t levels[64] = {};
               for_lanes(count, [&](int64_t i, int64_t n) HWY_ATTR {
                 store_bytes(nearest_level(load_n(x + i, n) / divisor), levels + i, n);
               });
               for (int64_t i = 0; i < count; i += 2)
                 codes[i / 2] = static_cast<uint8_t>(levels[i] | levels[i + 1] << 4);
             });
}

/// Both levels of a byte, side by side.
struct LevelPairs {
  float at[256][2];
};
constexpr LevelPairs kPairs = [] {
  LevelPairs pairs{};
  for (int byte = 0; byte < 256; ++byte) {
    pairs.at[byte][0] = ops::kNormalLevels[byte & 15];
    pairs.at[byte][1] = ops::kNormalLevels[byte >> 4];
  }
  return pairs;
}();

template <class T>
void dequantize(const ops::Dequantize& op, int64_t begin, int64_t end) {
  const bool fp8 = op.weight.format == ops::WeightFormat::fp8;
  const auto* all_codes = op.weight.codes.as<uint8_t>();
  const auto* scales = op.weight.scales.as<float>();
  T* all = op.y.as<T>();
  for_blocks(op.weight.format, op.y.dim(1), begin, end,
             [&](int64_t element, int64_t byte, int64_t block, int64_t count) HWY_ATTR {
               const uint8_t* codes = all_codes + byte;
               T* y = all + element;
               const Floats scale = broadcast(scales[block]);
               for_lanes(count, [&](int64_t i, int64_t n) HWY_ATTR {
                 if (fp8) {
                   store_n(from_e4m3(load_bytes(codes + i, n)) * scale, y + i, n);
                   return;
                 }
                 float levels[kLanes + 1] = {};
                 for (int64_t j = 0; j < n; j += 2)
                   std::memcpy(levels + j, kPairs.at[codes[(i + j) / 2]], sizeof(kPairs.at[0]));
                 store_n(load(levels) * scale, y + i, n);
               });
             });
}

/// Rows [begin, end) by the format's own function.
template <class T>
void pack_rows(const ops::Quantize& op, int64_t begin, int64_t end) {
  const int64_t columns = op.x.dim(1);
  std::vector<float> values(static_cast<size_t>(columns));
  for (int64_t row = begin; row < end; ++row) {
    const T* x = op.x.as<T>() + row * columns;
    for_lanes(columns, [&](int64_t i, int64_t n)
                           HWY_ATTR { store_n(load_n(x + i, n), values.data() + i, n); });
    ops::pack_row(op.weight, row, values);
  }
}
template <class T>
void unpack_rows(const ops::Dequantize& op, int64_t begin, int64_t end) {
  const int64_t columns = op.y.dim(1);
  std::vector<float> values(static_cast<size_t>(columns));
  for (int64_t row = begin; row < end; ++row) {
    ops::unpack_row(op.weight, row, values);
    T* y = op.y.as<T>() + row * columns;
    for_lanes(columns, [&](int64_t i, int64_t n)
                           HWY_ATTR { store_n(load_n(values.data() + i, n), y + i, n); });
  }
}

void pack_row_range(const ops::Quantize& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class T>(T) { pack_rows<T>(op, begin, end); });
}
void unpack_row_range(const ops::Dequantize& op, int64_t begin, int64_t end) {
  with_type(op.y.dtype(), [&]<class T>(T) { unpack_rows<T>(op, begin, end); });
}
void quantize_range(const ops::Quantize& op, int64_t begin, int64_t end) {
  with_type(op.x.dtype(), [&]<class T>(T) { quantize<T>(op, begin, end); });
}
void dequantize_range(const ops::Dequantize& op, int64_t begin, int64_t end) {
  with_type(op.y.dtype(), [&]<class T>(T) { dequantize<T>(op, begin, end); });
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(pack_row_range);
HWY_EXPORT(unpack_row_range);
HWY_EXPORT(quantize_range);
HWY_EXPORT(dequantize_range);

constexpr int64_t kGrain = 256;   // blocks
constexpr int64_t kRowGrain = 4;  // rows

bool has_kernel(const ops::Weight& weight) {
  const bool known =
      weight.format == ops::WeightFormat::fp8 || weight.format == ops::WeightFormat::nf4;
  return known && weight.layout == ops::WeightLayout::rows;
}

/// Calls body(begin, end) in parallel for what the groups with rows have of `all` things.
template <class Body>
void for_used_groups(ThreadPool& pool, const ops::Dequantize& op, int64_t all, int64_t grain,
                     const Body& body) {
  const int32_t* offsets = op.offsets ? op.offsets.as<int32_t>() : nullptr;
  const int64_t groups = offsets ? op.weight.groups() : 1, each = all / groups;
  for (int64_t g = 0; g < groups; ++g) {
    if (offsets && offsets[g] == offsets[g + 1]) continue;
    pool.for_ranges(each, grain,
                    [&](int64_t begin, int64_t end) { body(g * each + begin, g * each + end); });
  }
}

}  // namespace

void CpuBackend::run(const ops::Quantize& op) {
  if (op.x.dtype() == Dtype::f64) refuse_type(op.kName, "x", op.x);
  if (has_kernel(op.weight)) {
    pool_.for_ranges(op.weight.scales.numel(), kGrain, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(quantize_range)(op, begin, end);
    });
    return;
  }
  pool_.for_ranges(op.x.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(pack_row_range)(op, begin, end);
  });
}

void CpuBackend::run(const ops::Dequantize& op) {
  if (op.y.dtype() == Dtype::f64) refuse_type(op.kName, "y", op.y);
  if (has_kernel(op.weight)) {
    for_used_groups(pool_, op, op.weight.scales.numel(), kGrain, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(dequantize_range)(op, begin, end);
    });
    return;
  }
  for_used_groups(pool_, op, op.y.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(unpack_row_range)(op, begin, end);
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
