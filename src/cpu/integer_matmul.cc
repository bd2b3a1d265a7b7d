// Products of weights in blocks or groups of whole numbers. x is rounded once a product; then each
// thread takes some bundles of outputs of one group at a time and streams their weights past all of
// the group's rows. Decoding is bound by reading the weights, once a step whatever the rows.

#include "cpu/integer_matmul.h"

#include <hwy/targets.h>

#include <algorithm>
#include <array>

#include "cpu/backend.h"
#include "cpu/instruction_sets.h"
#include "cpu/types.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace mixtral::cpu {
namespace {

constexpr int64_t kBundle = 8;                     // outputs side by side
constexpr int64_t kBlock = 32, kSuperBlock = 256;  // of x that are rounded together
constexpr int64_t kRows = 128;                     // of x at once: they stay in the L2 cache
// Rows that are sooner computed with one stream of weights than with wider vectors and two.
constexpr int64_t kNarrowRows = 2;
constexpr int64_t kShares = 2;  // of a thread's part of the work that is left: an item takes one
constexpr double kMinItemWork = 1 << 18;  // multiply-adds: about ten microseconds
constexpr int64_t kRoundAlone = 1 << 14;  // elements of x that are rounded sooner than shared out

bool has_dot_products() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;  // since the first of these processors
#else
  return false;
#endif
}

bool has_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

}  // namespace

std::vector<const IntegerKernels*> integer_kernel_sets() {
  const int64_t targets = hwy::SupportedTargets();
  const auto runs = [&](int64_t target) { return (targets & target) != 0; };
  const bool vnni = runs(HWY_AVX3) && has_vnni() && may_use_extensions();
  const std::array<std::pair<const IntegerKernels*, bool>, 6> all{{
      {kIntegerVnni, vnni},
      {kIntegerVnniNarrow, vnni},
      {kIntegerAvx512, runs(HWY_AVX3)},
      {kIntegerAvx2, runs(HWY_AVX2)},
      {kIntegerDotProduct, runs(HWY_NEON) && has_dot_products() && may_use_extensions()},
      {kIntegerNeon, runs(HWY_NEON)},
  }};
  std::vector<const IntegerKernels*> sets;
  for (const auto& [kernels, supported] : all)
    if (kernels && supported) sets.push_back(kernels);
  return sets;
}

const IntegerKernels* integer_kernels() {
  const auto sets = integer_kernel_sets();
  return sets.empty() ? nullptr : sets.front();
}

const IntegerKernels* narrow_integer_kernels() {
  const auto sets = integer_kernel_sets();
  const auto found = std::ranges::find(sets, 1, &IntegerKernels::bundles);
  return found == sets.end() ? integer_kernels() : *found;
}

std::optional<IntegerFormat> integer_format(ops::WeightFormat format) {
  const ops::FormatRow& row = format.row();
  if (row.kind == ops::FormatKind::separate) {
    const bool is_f16 = row.scale_type == Dtype::f16, is_bf16 = row.scale_type == Dtype::bf16;
    if (row.offset != ops::BlockOffset::minimum || row.block % kBlock != 0 ||
        !(is_f16 || is_bf16) || row.minimum_type != row.scale_type ||
        !(row.bits == 4 || row.bits == 8))
      return std::nullopt;
    if (row.bits == 4) return is_f16 ? IntegerFormat::int4_f16 : IntegerFormat::int4_bf16;
    return is_f16 ? IntegerFormat::int8_f16 : IntegerFormat::int8_bf16;
  }
  static constexpr std::array<std::string_view, 12> kNames{"q4_0", "q4_1", "q5_0",   "q5_1",
                                                           "q8_0", "q4_k", "q5_k",   "q6_k",
                                                           "q2_k", "q3_k", "iq4_nl", "iq4_xs"};
  const auto* const found = std::ranges::find(kNames, format.name());
  if (found == kNames.end()) return std::nullopt;
  return static_cast<IntegerFormat>(found - kNames.begin());
}

namespace {

/// Whether there are kernels for rows of so many numbers. They take whole groups.
bool has_kernels(ops::WeightFormat format, int64_t inputs) {
  const ops::FormatRow& row = format.row();
  return integer_format(format) &&
         (row.kind != ops::FormatKind::separate || inputs % row.block == 0);
}

/// The order and the blocks in which x is rounded beside a format.
enum class Rounding : uint8_t { plain, halves, super };
constexpr size_t kRoundings = 3;

Rounding rounding_of(ops::WeightFormat format) {
  const ops::FormatRow& row = format.row();
  if (row.super_block > 0) return Rounding::super;
  const bool pairs = row.kind == ops::FormatKind::separate && row.bits == 4;
  return pairs ? Rounding::halves : Rounding::plain;
}

}  // namespace

bool CpuBackend::computes_directly(const ops::GroupedMatmul& op) const {
  if (op.weight.dense())
    return op.weight.layout == ops::WeightLayout::rows ||
           op.weight.format == ops::WeightFormat::bf16 || op.operands != ops::Operands::bf16;
  return op.operands == ops::Operands::as_weight && op.x.dtype() == Dtype::f32 &&
         op.weight.layout == ops::WeightLayout::interleaved8 &&
         has_kernels(op.weight.format, op.weight.inputs()) && integer_kernels_;
}

ops::WeightLayout CpuBackend::preferred_layout(ops::WeightFormat format, const Shape& shape) const {
  // Kernels of floats read dense weights line by line otherwise, and transpose them each time.
  constexpr auto kDense = ops::WeightLayout::interleaved16;
  if (format.dense() && float_kernels() && ops::has_layout(format, shape, kDense)) return kDense;
  constexpr auto kInterleaved = ops::WeightLayout::interleaved8;
  const bool has = has_kernels(format, shape[2]) && integer_kernels_ &&
                   ops::has_layout(format, shape, kInterleaved);
  return has ? kInterleaved : ops::WeightLayout::rows;
}

void CpuBackend::run_all(std::span<const ops::GroupedMatmul> products) {
  const bool together = std::ranges::all_of(products, [&](const ops::GroupedMatmul& op) {
    return !op.weight.dense() && op.weight.groups() == 1 && computes_directly(op);
  });
  if (together) return multiply_integers(products);
  for (const ops::GroupedMatmul& product : products) run(product);
}

void CpuBackend::multiply_integers(std::span<const ops::GroupedMatmul> products) {
  const IntegerKernels& kernels = *integer_kernels_;
  const Tensor& x = products.front().x;
  const Tensor& offsets = products.front().offsets;
  const int64_t rows = x.dim(0), inputs = x.dim(1);
  if (rows == 0) return;
  std::array<bool, kRoundings> used{};
  double left = 0;  // multiply-adds
  for (const ops::GroupedMatmul& op : products) {
    expect_f32(op.kName, {op.x, op.y});
    CHECK(computes_directly(op), "a weight that has no integer kernels");
    CHECK(op.x.data() == x.data() && op.x.dim(0) == rows);
    used[static_cast<size_t>(rounding_of(op.weight.format))] = true;
    left += static_cast<double>(rows * inputs) * static_cast<double>(op.weight.outputs());
  }

  const int64_t blocks = inputs / kBlock, super_blocks = inputs / kSuperBlock;
  const int64_t block_bytes = rows * blocks * int64_t{sizeof(RoundedBlock)};
  const auto bytes_of = [&](Rounding rounding, int64_t bytes) {
    return used[static_cast<size_t>(rounding)] ? bytes : 0;
  };
  const int64_t plain_bytes = bytes_of(Rounding::plain, block_bytes);
  const int64_t halves_bytes = bytes_of(Rounding::halves, block_bytes);
  const int64_t super_bytes =
      bytes_of(Rounding::super, rows * super_blocks * int64_t{sizeof(RoundedSuperBlock)});
  auto* const rounded =
      static_cast<std::byte*>(shared_.get(0, plain_bytes + halves_bytes + super_bytes));
  auto* const plain_x = reinterpret_cast<RoundedBlock*>(rounded);
  auto* const halves_x = reinterpret_cast<RoundedBlock*>(rounded + plain_bytes);
  auto* const super_x = reinterpret_cast<RoundedSuperBlock*>(rounded + plain_bytes + halves_bytes);
  const auto round = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x.as<float>() + r * inputs;
      if (plain_bytes > 0) kernels.round(row, blocks, plain_x + r, rows);
      if (halves_bytes > 0) kernels.round_halves(row, blocks, halves_x + r, rows);
      if (super_bytes > 0) kernels.round_super(row, super_blocks, super_x + r, rows);
    }
  };
  const auto x_of = [&](Rounding rounding, int64_t row) -> const void* {
    if (rounding == Rounding::super) return super_x + row;
    return (rounding == Rounding::halves ? halves_x : plain_x) + row;
  };
  if (rows * inputs <= kRoundAlone)
    round(0, rows);
  else
    pool_.for_ranges(rows, std::max<int64_t>(1, kRoundAlone / 4 / inputs), round);

  // Items of whole bundles, each a share of the work that is left: long streams of weights first,
  // short ones last, so that threads end together whatever they were held up by.
  const double share = 1.0 / static_cast<double>(kShares * pool_.size());
  integer_items_.clear();
  const auto add_group = [&](size_t product, int64_t group, int64_t first, int64_t end) {
    const int64_t bundles = products[product].weight.outputs() / kBundle;
    for (int64_t row = first; row < end; row += kRows) {
      const int64_t count = std::min(kRows, end - row);
      const double each = static_cast<double>(count * kBundle * inputs);
      for (int64_t begin = 0; begin < bundles;) {
        // Pairs of bundles stay together: wide vectors compute two at once.
        const auto taken = static_cast<int64_t>(std::max(left * share, kMinItemWork) / each);
        const int64_t stop = std::min(bundles, begin + std::max<int64_t>(taken / 2 * 2, 2));
        integer_items_.push_back({product, group, row, count, begin, stop});
        left -= static_cast<double>(stop - begin) * each;
        begin = stop;
      }
    }
  };
  for (size_t product = 0; product < products.size(); ++product) {
    if (offsets.empty()) {
      add_group(product, 0, 0, rows);
      continue;
    }
    const int32_t* starts = offsets.as<int32_t>();
    for (int64_t g = 0; g < products[product].weight.groups(); ++g)
      add_group(product, g, starts[g], starts[g + 1]);
  }

  const auto bundle_bytes = [&](const IntegerItem& item) {
    return kBundle * products[item.product].weight.format.codes(inputs);
  };
  const auto bundle_of = [&](const IntegerItem& item) {
    return item.group * products[item.product].weight.outputs() / kBundle + item.begin;
  };
  const auto weight_of = [&](const IntegerItem& item) {
    return products[item.product].weight.codes.as<uint8_t>() + bundle_of(item) * bundle_bytes(item);
  };
  const auto compute = [&](size_t at) {
    const IntegerItem& item = integer_items_[at];
    const ops::GroupedMatmul& op = products[item.product];
    const ops::WeightFormat format = op.weight.format;
    const auto index = static_cast<int>(*integer_format(format));
    // Threads of equal speed take items in turn.
    const size_t next = at + static_cast<size_t>(pool_.size());
    const Rounding rounding = rounding_of(format);
    IntegerTask task{
        .weight = weight_of(item),
        .bundles = item.end - item.begin,
        .bundle_bytes = bundle_bytes(item),
        .next = next < integer_items_.size() ? weight_of(integer_items_[next]) : nullptr,
        .blocks = rounding == Rounding::super ? super_blocks : blocks,
        .x = x_of(rounding, item.row),
        .x_rows = rows,
        .rows = item.rows,
        .y = op.y.as<float>() + item.row * op.y.dim(1) + op.y_begin + item.begin * kBundle,
        .y_stride = op.y.dim(1),
        .scale = static_cast<float>(op.scale),
        .accumulate = op.accumulate};
    if (format.kind() == ops::FormatKind::separate) {
      task.group_blocks = format.row().block / kBlock;
      task.blocks = blocks / task.group_blocks;
      task.scale_bytes = kBundle * op.weight.scales.dim(1) * size_of(op.weight.scales.dtype());
      const int64_t skipped = bundle_of(item) * task.scale_bytes;
      task.scales = static_cast<const uint8_t*>(op.weight.scales.data()) + skipped;
      task.minima = static_cast<const uint8_t*>(op.weight.minima.data()) + skipped;
    }
    (item.rows <= kNarrowRows ? *narrow_integer_kernels_ : kernels).multiply[index](task);
  };
  if (rows <= ExpectedWeights::kMostRows) {
    const ops::Weight& first = products.front().weight;
    const auto* data = first.codes.as<uint8_t>();
    const int64_t group_bytes = first.outputs() * first.format.codes(inputs);
    places_.clear();
    int64_t group = 0;
    for (size_t i = 0; i < integer_items_.size() && i < static_cast<size_t>(pool_.size()); ++i) {
      const IntegerItem& item = integer_items_[i];
      if (i > 0 && item.group != integer_items_[i - 1].group) ++group;
      // Other products have other weights, but one group.
      places_.push_back({.group = group,
                         .offset = weight_of(item) - data - item.group * group_bytes,
                         .bytes = (item.end - item.begin) * bundle_bytes(item)});
    }
    expected_.begin({.data = data, .groups = first.groups(), .group_bytes = group_bytes},
                    offsets.empty() ? nullptr : offsets.as<int32_t>(), places_);
  }
  // One captured reference, so that std::function does not allocate.
  pool_.for_each(static_cast<int64_t>(integer_items_.size()),
                 [&compute](int64_t i, int) { compute(static_cast<size_t>(i)); });
}

}  // namespace mixtral::cpu
