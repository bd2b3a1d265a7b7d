// Products of weights in blocks of whole numbers. x is rounded once a product; then each thread
// takes some bundles of outputs of one group at a time and streams their weights past all of the
// group's rows. Decoding is bound by reading the weights, once a step whatever the rows.

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

constexpr int64_t kBundle = 8;  // outputs side by side
constexpr int64_t kRows = 128;  // of x at once: they stay in the L2 cache
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
  static constexpr std::array<std::string_view, kIntegerFormats> kNames{
      "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
  const auto* const found = std::ranges::find(kNames, format.name());
  if (found == kNames.end()) return std::nullopt;
  return static_cast<IntegerFormat>(found - kNames.begin());
}

bool CpuBackend::computes_directly(const ops::GroupedMatmul& op) const {
  if (op.weight.dense())
    return op.weight.layout == ops::WeightLayout::rows || op.operands != ops::Operands::bf16;
  return op.operands == ops::Operands::integers && op.x.dtype() == Dtype::f32 &&
         op.weight.layout == ops::WeightLayout::interleaved8 && integer_format(op.weight.format) &&
         integer_kernels_;
}

ops::WeightLayout CpuBackend::preferred_layout(ops::WeightFormat format, const Shape& shape) const {
  // Kernels of floats read dense weights line by line otherwise, and transpose them each time.
  constexpr auto kDense = ops::WeightLayout::interleaved16;
  if (format.dense() && float_kernels() && ops::has_layout(format, shape, kDense)) return kDense;
  constexpr auto kInterleaved = ops::WeightLayout::interleaved8;
  const bool has =
      integer_format(format) && integer_kernels_ && ops::has_layout(format, shape, kInterleaved);
  return has ? kInterleaved : ops::WeightLayout::rows;
}

void CpuBackend::multiply_integers(const ops::GroupedMatmul& op) {
  expect_f32(op.kName, {op.x, op.y});
  CHECK(computes_directly(op), "a weight that has no integer kernels");
  const IntegerKernels& kernels = *integer_kernels_;
  const ops::WeightFormat format = op.weight.format;
  const int64_t rows = op.x.dim(0), inputs = op.weight.inputs(), outputs = op.weight.outputs();
  const int64_t size = format.unit(), blocks = inputs / size, y_width = op.y.dim(1);
  if (rows == 0) return;

  const bool super = format.row().super_block > 0;
  const int64_t block_bytes =
      static_cast<int64_t>(super ? sizeof(RoundedSuperBlock) : sizeof(RoundedBlock));
  auto* rounded = static_cast<char*>(shared_.get(0, rows * blocks * block_bytes));
  const auto round = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = op.x.as<float>() + r * inputs;
      char* const to = rounded + r * block_bytes;
      if (super)
        kernels.round_super(x, blocks, reinterpret_cast<RoundedSuperBlock*>(to), rows);
      else
        kernels.round(x, blocks, reinterpret_cast<RoundedBlock*>(to), rows);
    }
  };
  if (rows * inputs <= kRoundAlone)
    round(0, rows);
  else
    pool_.for_ranges(rows, std::max<int64_t>(1, kRoundAlone / 4 / inputs), round);

  // Items of whole bundles, each a share of the work that is left: long streams of weights first,
  // short ones last, so that threads end together whatever they were held up by.
  const int64_t bundles = outputs / kBundle;
  const double per_output = static_cast<double>(inputs);
  double left = static_cast<double>(rows) * static_cast<double>(outputs) * per_output;
  const double share = 1.0 / static_cast<double>(kShares * pool_.size());
  integer_items_.clear();
  const auto add_group = [&](int64_t group, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row += kRows) {
      const int64_t count = std::min(kRows, end - row);
      const double each = static_cast<double>(count * kBundle) * per_output;
      for (int64_t begin = 0; begin < bundles;) {
        // Pairs of bundles stay together: wide vectors compute two at once.
        const auto taken = static_cast<int64_t>(std::max(left * share, kMinItemWork) / each);
        const int64_t stop = std::min(bundles, begin + std::max<int64_t>(taken / 2 * 2, 2));
        integer_items_.push_back({group, row, count, begin, stop});
        left -= static_cast<double>(stop - begin) * each;
        begin = stop;
      }
    }
  };
  if (op.offsets.empty()) {
    add_group(0, 0, rows);
  } else {
    const int32_t* offsets = op.offsets.as<int32_t>();
    for (int64_t g = 0; g < op.weight.groups(); ++g) add_group(g, offsets[g], offsets[g + 1]);
  }

  const auto* codes = op.weight.codes.as<uint8_t>();
  const int64_t row_bytes = format.row_bytes(inputs);
  const auto index = static_cast<int>(*integer_format(format));
  const auto multiply_many = kernels.multiply[index];
  const auto multiply_few = narrow_integer_kernels_->multiply[index];
  const auto weight_of = [&](const IntegerItem& item) {
    return codes + (item.group * outputs + item.begin * kBundle) * row_bytes;
  };
  const auto compute = [&](size_t at) {
    const IntegerItem& item = integer_items_[at];
    // Threads of equal speed take items in turn.
    const size_t next = at + static_cast<size_t>(pool_.size());
    const auto multiply = item.rows <= kNarrowRows ? multiply_few : multiply_many;
    multiply({.weight = weight_of(item),
              .bundles = item.end - item.begin,
              .bundle_bytes = kBundle * row_bytes,
              .next = next < integer_items_.size() ? weight_of(integer_items_[next]) : nullptr,
              .blocks = blocks,
              .x = rounded + item.row * block_bytes,
              .x_rows = rows,
              .rows = item.rows,
              .y = op.y.as<float>() + item.row * y_width + op.y_begin + item.begin * kBundle,
              .y_stride = y_width,
              .scale = static_cast<float>(op.scale),
              .accumulate = op.accumulate});
  };
  if (rows <= ExpectedWeights::kMostRows) {
    places_.clear();
    int64_t group = 0;
    for (size_t i = 0; i < integer_items_.size() && i < static_cast<size_t>(pool_.size()); ++i) {
      const IntegerItem& item = integer_items_[i];
      if (i > 0 && item.group != integer_items_[i - 1].group) ++group;
      places_.push_back({.group = group,
                         .offset = item.begin * kBundle * row_bytes,
                         .bytes = (item.end - item.begin) * kBundle * row_bytes});
    }
    expected_.begin(
        {.data = codes, .groups = op.weight.groups(), .group_bytes = outputs * row_bytes},
        op.offsets.empty() ? nullptr : op.offsets.as<int32_t>(), places_);
  }
  // One captured reference, so that std::function does not allocate.
  pool_.for_each(static_cast<int64_t>(integer_items_.size()),
                 [&compute](int64_t i, int) { compute(static_cast<size_t>(i)); });
}

}  // namespace mixtral::cpu
