#include <fmt/format.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cstring>

#include "base/advice.h"
#include "cpu/backend.h"
#include "cpu/instruction_sets.h"
#include "cpu/matmul_ahead.h"
#include "cpu/matmul_plan.h"

namespace mixtral::cpu {
namespace {

constexpr int64_t kCutUnits = 384;   // of k in a block, at most about, where k is cut
constexpr int64_t kFetchUnits = 48;  // fewer are done sooner than what they would fetch comes
constexpr int kInPlaceRows = 12;     // of a tile, at least, where A's are not packed
constexpr int64_t kFewUnits = 128;   // of k in a panel, of a product with few rows

/// Whether tiles take B's columns where they stand: its words are units. Others are packed first.
bool in_place(const Product& p, const Kernels& kernels, bool round) {
  if (p.b.layout != Layout::interleaved) return false;
  return kernels.unit == 1 ? p.b.element == Element::f32 && !round : p.b.element == Element::bf16;
}

/// Whether tiles take A's rows where they stand: each unit of k is then one or two cache lines.
/// With few rows, most of a line would be left, to be read again for other tiles, each unit from
/// another page.
bool rows_in_place(const Product& p, const Kernels& kernels, bool round) {
  return p.a.layout == Layout::k_strided && p.a.element == Element::f32 && kernels.unit == 1 &&
         kernels.rows >= kInPlaceRows && !round;
}

/// The word of an interleaved B that holds element k of a column. The same word of the bundle's
/// next columns follows.
const char* word_of(const Product& p, int64_t column, int64_t k) {
  const int64_t per_word = p.b.element == Element::f32 ? 1 : 2, words = p.b.stride / per_word;
  const int64_t word = column / kInterleavedLines * words + k / per_word;
  return static_cast<const char*>(p.b.data) +
         4 * (word * kInterleavedLines + column % kInterleavedLines);
}

/// Bytes from there to the same word of the panel's second half; 0 where C has no such columns.
int64_t half_panel(const Product& p, const Kernels& kernels, int64_t column) {
  const int64_t half = column + kernels.columns / 2;
  return half < p.n ? word_of(p, half, 0) - word_of(p, column, 0) : 0;
}

/// Gives a tile the columns of a B that is used in place, from `column` and `k` on. Where there is
/// no second half, what is computed for it is not used.
void point_at(const Product& p, const Kernels& kernels, int64_t column, int64_t k, Tile& tile) {
  tile.b = word_of(p, column, k);
  tile.b_step = kInterleavedLines;
  tile.b_half = half_panel(p, kernels, column) / 4;
}

/// Makes a tile fetch `count` elements of an interleaved B's columns, from `column` and `k` on.
void fetch_columns(const Product& p, const Kernels& kernels, int64_t column, int64_t k,
                   int64_t count, Tile& tile) {
  tile.ahead = word_of(p, column, k);
  tile.ahead_half = half_panel(p, kernels, column);
  tile.ahead_lines = p.b.element == Element::f32 ? count : count / 2;
  tile.ahead_row = tile.ahead_lines;
}

/// The units of k in a block of A or B.
int64_t block_units(const Product& p, const Kernels& kernels) {
  const int64_t units = divide_up(p.k, kernels.unit);
  return units <= kBlockUnits ? round_up(units, 16) : even_part(units, kCutUnits, 16);
}

/// Where a column of B begins whose elements are contiguous in k, or a bundle of interleaved ones.
const void* first_line(const Product& p, int64_t column) {
  const int64_t size = p.b.element == Element::f32 ? 4 : 2;
  return static_cast<const char*>(p.b.data) + column * p.b.stride * size;
}

Element element_of(const Tensor& tensor, std::string_view what) {
  switch (tensor.dtype()) {
    case Dtype::f32:
      return Element::f32;
    case Dtype::bf16:
      return Element::bf16;
    case Dtype::f16:
      return Element::f16;
    default:
      throw AdvisedError(fmt::format(
          "the cpu backend multiplies f32 activations with f32, bf16 or f16 weights, but {} is {}; "
          "use ‹device ref› for f64",
          what, to_string(tensor.dtype())));
  }
}

/// Activations and gradients are f32 here.
const float* floats(const Tensor& tensor, std::string_view what) {
  if (tensor.dtype() != Dtype::f32)
    throw AdvisedError(
        fmt::format("the cpu backend computes with f32 activations, but {} is {}; use "
                    "‹device ref› for f64, or ‹dtype bf16› for products of bf16 operands",
                    what, to_string(tensor.dtype())));
  return static_cast<const float*>(tensor.data());
}

/// Calls body(group, first row, rows) for each group that has rows, and empty(group) for the
/// others.
template <class Body, class Empty>
void for_each_group(const Tensor& offsets, int64_t rows, const Body& body, const Empty& empty) {
  if (offsets.empty()) {
    if (rows > 0)
      body(int64_t{0}, int64_t{0}, rows);
    else
      empty(int64_t{0});
    return;
  }
  const int32_t* starts = offsets.as<int32_t>();
  const int64_t groups = offsets.dim(0) - 1;
  for (int64_t g = 0; g < groups; ++g) {
    CHECK(starts[g] >= 0 && starts[g] <= starts[g + 1] && starts[g + 1] <= rows,
          "group offsets out of range");
    if (starts[g] < starts[g + 1])
      body(g, int64_t{starts[g]}, int64_t{starts[g + 1] - starts[g]});
    else
      empty(g);
  }
}

template <class Body>
void for_each_group(const Tensor& offsets, int64_t rows, const Body& body) {
  for_each_group(offsets, rows, body, [](int64_t) {});
}

}  // namespace

const Kernels* bf16_kernels() {
#if defined(__x86_64__)
  // A rule and not a measurement, so that the same machine always gives the same bits. AMD's Zen 4
  // and later multiply pairs at the rate of floats, twice the products; Intel's cores were measured
  // at half the rate of floats, so they round the operands and multiply floats.
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd") &&
      (hwy::SupportedTargets() & HWY_AVX3) != 0 && may_use_extensions())
    return kPairKernels;
#endif
  return nullptr;
}

void Products::compute(const Item& item, const Settings& settings, int thread, Hand& hand) {
  const Kernels& kernels = *settings.kernels;
  const Product& p = *item.product;
  const bool rows = rows_stay(p);
  const int64_t panels = divide_up(item.n_end - item.n, kernels.columns);
  const int64_t tiles = divide_up(item.m_end - item.m, kernels.rows);
  const int64_t block = block_units(p, kernels) * kernels.unit;
  const int64_t k_blocks = divide_up(p.k, block);
  const bool unpacked = in_place(p, kernels, settings.round);
  const bool unpacked_rows = rows_in_place(p, kernels, settings.round);
  // What passes is packed a row tile or panel at a time; several at once where k is strided, so
  // that longer pieces of memory are read.
  const int64_t passing = rows ? panels : tiles, staying = rows ? tiles : panels;
  const bool strided = (rows ? p.b.layout : p.a.layout) == Layout::k_strided;
  const int64_t group = std::min(passing, !strided ? int64_t{1}
                                          : rows   ? kStridedPanels
                                                   : kStridedTiles);
  const int64_t panel_step = panel_units(kernels.columns);
  const int64_t row_step = row_tile_units(kernels.rows);
  const int64_t partial_step = round_up(int64_t{kernels.rows} * kernels.columns, 64);
  const int64_t partial_tiles = k_blocks > 1 ? tiles * panels : 1;
  const int64_t stay_units = rows ? tiles * row_step : panels * panel_step;
  const int64_t pass_units = group * (rows ? panel_step : row_step);
  const int64_t bytes = 4 * (stay_units + pass_units + partial_tiles * partial_step);
  auto* stays = static_cast<float*>(scratch_.get(thread, bytes));
  float* passes = stays + stay_units;
  float* partial = passes + pass_units;
  float* a = rows ? stays : passes;
  float* b = rows ? passes : stays;
  // The block that stays may be there from the item before.
  const bool there = hand.packed == &p && hand.line == (rows ? item.m : item.n) &&
                     bytes <= hand.bytes && k_blocks == 1;
  hand.packed = k_blocks == 1 ? &p : nullptr;
  hand.line = rows ? item.m : item.n;
  hand.bytes = std::max(bytes, hand.bytes);

  /// `count` row tiles of A, or panels of B, of an item, from the `first` and from k on.
  const auto block_of = [&](const Item& of, bool of_rows, int64_t first, int64_t count, int64_t k) {
    const int64_t grain = of_rows ? kernels.rows : kernels.columns;
    const int64_t line = (of_rows ? of.m : of.n) + first * grain;
    const int64_t end = of_rows ? of.m_end : of.n_end;
    return Block{of_rows ? of.product->a : of.product->b, line,
                 std::min(count * grain, end - line),     k,
                 std::min(block, of.product->k - k),      settings.round};
  };
  const auto staying_block = [&](const Item& of, int64_t k) {
    return block_of(of, rows, 0, staying, k);
  };
  const auto passing_block = [&](const Item& of, int64_t first, int64_t k) {
    return block_of(of, !rows, first, group, k);
  };
  const Item* next = expected(hand);
  if (next && (rows_stay(*next->product) != rows || streams(*next->product, kernels) ||
               has_few_rows(*next->product, kernels)))
    next = nullptr;

  Tile tile;
  tile.b_step = kernels.columns;
  tile.b_half = kernels.columns / 2;
  tile.layout = p.a.layout;
  tile.a_step = unpacked_rows ? p.a.stride : kernels.rows;
  tile.c_stride = p.c_stride;
  tile.transposed = p.transposed;
  tile.scale = settings.scale;
  tile.accumulate = settings.accumulate;
  for (int64_t i = 0; i < k_blocks; ++i) {
    const int64_t k = i * block, count = std::min(block, p.k - k);
    tile.units = divide_up(count, kernels.unit);
    tile.first = i == 0;
    tile.last = i == k_blocks - 1;
    if (!there && rows && !unpacked_rows)
      kernels.pack_rows(staying_block(item, k), a);
    else if (!there && !rows && !unpacked)
      kernels.pack_columns(staying_block(item, k), b);
    // After this block comes the next one in k, or the next item.
    const Item* after = tile.last ? next : &item;
    const int64_t after_k = tile.last ? 0 : k + block;
    Ahead soon, later;  // the next group, and the next block of what stays
    const bool other =
        !tile.last || (next && (next->product != &p || hand.line != (rows ? next->m : next->n)));
    const bool fetches = tile.units >= kFetchUnits;
    if (fetches && after && other && (rows || !unpacked))
      later = Ahead(staying_block(*after, after_k));
    for (int64_t t = 0; t < passing; ++t) {
      if (t % group == 0) {
        const Block packed = passing_block(item, t, k);
        if (!rows && !unpacked_rows)
          kernels.pack_rows(packed, a);
        else if (rows && !unpacked)
          kernels.pack_columns(packed, b);
        if (fetches && t + group < passing)
          soon = Ahead(passing_block(item, t + group, k));
        else if (fetches && after)
          soon = Ahead(passing_block(*after, 0, after_k));
      }
      const int64_t left = (passing - t) * staying;
      for (int64_t s = 0; s < staying; ++s) {
        const int64_t r = rows ? s : t, j = rows ? t : s;
        const int64_t m = item.m + r * kernels.rows, n = item.n + j * kernels.columns;
        tile.a = unpacked_rows ? static_cast<const float*>(p.a.data) + k * p.a.stride + m
                               : a + (rows ? r : r % group) * row_step;
        tile.rows = static_cast<int>(std::min<int64_t>(kernels.rows, item.m_end - m));
        tile.partial = partial + (k_blocks > 1 ? r * panels + j : 0) * partial_step;
        tile.c = p.c + (p.transposed ? n * p.c_stride + m : m * p.c_stride + n);
        tile.columns = std::min<int64_t>(kernels.columns, item.n_end - n);
        if (unpacked)
          point_at(p, kernels, n, k, tile);
        else
          tile.b = b + (rows ? j % group : j) * panel_step;
        // Spread over tiles, so that memory can follow; a large block not earlier than it has to
        // be.
        if (soon.rows() > 0)
          soon.give(tile, (group - t % group) * staying / 2 - s);
        else if (left - s <= passing * staying / 2)
          later.give(tile, (left - s) * 3 / 4);
        else
          tile.ahead_lines = 0;
        kernels.tile(tile);
      }
    }
  }
}

void Products::compute_few(const Item& item, const Settings& settings, int thread) {
  const Kernels& kernels = *settings.kernels;
  const Product& p = *item.product;
  const int64_t tiles = divide_up(item.m_end - item.m, kernels.rows);
  const int64_t a_block = kBlockUnits * kernels.unit, b_block = kFewUnits * kernels.unit;
  const int64_t a_blocks = divide_up(p.k, a_block);
  const int64_t row_step = row_tile_units(kernels.rows);
  const int64_t partial_step = round_up(int64_t{kernels.rows} * kernels.columns, 64);
  auto* b = static_cast<float*>(scratch_.get(
      thread,
      4 * (panel_units(kernels.columns) + a_blocks * tiles * row_step + tiles * partial_step)));
  float* a = b + panel_units(kernels.columns);
  float* partial = a + a_blocks * tiles * row_step;
  for (int64_t i = 0; i < a_blocks; ++i)
    kernels.pack_rows({p.a, item.m, item.m_end - item.m, i * a_block,
                       std::min(a_block, p.k - i * a_block), settings.round},
                      a + i * tiles * row_step);

  const bool unpacked = in_place(p, kernels, settings.round);
  Tile tile;
  tile.b = b;
  tile.b_step = kernels.columns;
  tile.b_half = kernels.columns / 2;
  tile.layout = p.a.layout;
  tile.a_step = kernels.rows;
  tile.c_stride = p.c_stride;
  tile.transposed = p.transposed;
  tile.scale = settings.scale;
  tile.accumulate = settings.accumulate;
  for (int64_t n = item.n; n < item.n_end; n += kernels.columns) {
    tile.columns = std::min<int64_t>(kernels.columns, item.n_end - n);
    for (int64_t k = 0; k < p.k; k += b_block) {
      const int64_t count = std::min(b_block, p.k - k);
      if (unpacked)
        point_at(p, kernels, n, k, tile);
      else
        kernels.pack_columns({p.b, n, tile.columns, k, count, settings.round}, b);
      tile.units = divide_up(count, kernels.unit);
      tile.first = k == 0;
      tile.last = k + count == p.k;
      if (p.b.layout == Layout::interleaved) {
        const bool ends = tile.last;  // the columns' last block
        const int64_t next_n = ends ? n + kernels.columns : n, next_k = ends ? 0 : k + b_block;
        if (next_n < item.n_end)
          fetch_columns(p, kernels, next_n, next_k, std::min(b_block, p.k - next_k), tile);
      }
      for (int64_t r = 0; r < tiles; ++r, tile.ahead_lines = 0) {
        const int64_t m = item.m + r * kernels.rows;
        const int64_t unit = k % a_block / kernels.unit;
        tile.a = a + (k / a_block * tiles + r) * row_step +
                 (p.a.layout == Layout::k_contiguous ? unit : unit * kernels.rows);
        tile.rows = static_cast<int>(std::min<int64_t>(kernels.rows, item.m_end - m));
        tile.partial = partial + r * partial_step;
        tile.c = p.c + (p.transposed ? n * p.c_stride + m : m * p.c_stride + n);
        kernels.tile(tile);
      }
    }
  }
}

void Products::stream(size_t index, const Settings& settings, int thread) {
  const Kernels& kernels = *settings.kernels;
  const Item& item = items_[index];
  const Product& p = *item.product;
  Stream s;
  s.rows = static_cast<int>(p.m);
  s.a = p.a.data;
  s.a_stride = p.a.stride;
  if (settings.round || kernels.unit > 1) {
    // Rows are packed block by block: a row tile's rows lie kRowStride apart.
    const int64_t block = kBlockUnits * kernels.unit;
    const int64_t units = divide_up(p.k, kernels.unit);
    const int64_t stride = round_up(units, 64);
    auto* rows = static_cast<float*>(
        scratch_.get(thread, 4 * (s.rows * stride + row_tile_units(kernels.rows))));
    float* packed = rows + s.rows * stride;
    for (int64_t k = 0; k < p.k; k += block) {
      const int64_t count = std::min(block, p.k - k);
      kernels.pack_rows({p.a, 0, s.rows, k, count, settings.round}, packed);
      for (int64_t r = 0; r < s.rows; ++r)
        std::memcpy(rows + r * stride + k / kernels.unit, packed + r * kRowStride,
                    static_cast<size_t>(divide_up(count, kernels.unit)) * 4);
    }
    s.a = rows;
    s.a_stride = stride;
  }
  s.b = {p.b, item.n, item.n_end - item.n, 0, p.k, settings.round};
  // Threads of equal speed take items in turn.
  const size_t next = index + static_cast<size_t>(pool_.size());
  if (next < items_.size()) s.next = first_line(*items_[next].product, items_[next].n);
  s.c = p.c + item.n;
  s.c_stride = p.c_stride;
  s.scale = settings.scale;
  s.accumulate = settings.accumulate;
  kernels.stream(s);
}

void Products::plan(bool bf16) {
  kernels_ = bf16 && pairs_ ? pairs_ : float_kernels();
  round_ = bf16 && !pairs_;
  if (!kernels_)
    throw AdvisedError(
        "the cpu backend needs a processor with AVX2 and FMA, or NEON; use ‹device ref›");
  divide(*kernels_);
}

void Products::find_places(std::vector<ExpectedWeights::Place>& places) const {
  places.clear();
  int64_t ordinal = 0;
  for (size_t i = 0; i < items_.size() && i < static_cast<size_t>(pool_.size()); ++i) {
    const Item& item = items_[i];
    const Operand& b = item.product->b;
    if (i > 0 && item.product != items_[i - 1].product) ++ordinal;
    const int64_t line = b.stride * (b.element == Element::f32 ? 4 : 2);
    places.push_back(
        {.group = ordinal, .offset = item.n * line, .bytes = (item.n_end - item.n) * line});
  }
}

void Products::run(float scale, bool accumulate) {
  const Settings settings{kernels_, scale, accumulate, round_};
  struct Job {
    Products& products;
    const Settings& settings;
  } job{*this, settings};
  // One captured reference, so that std::function does not allocate.
  pool_.for_each(std::min<int64_t>(pool_.size(), static_cast<int64_t>(items_.size())),
                 [&job](int64_t, int thread) { job.products.work(job.settings, thread); });
}

void Products::work(const Settings& settings, int thread) {
  const Kernels& kernels = *settings.kernels;
  Hand hand;
  while (const Item* item = take(hand)) {
    if (streams(*item->product, kernels)) {
      hand.packed = nullptr;
      stream(static_cast<size_t>(item - items_.data()), settings, thread);
    } else if (has_few_rows(*item->product, kernels)) {
      hand.packed = nullptr;
      compute_few(*item, settings, thread);
    } else {
      compute(*item, settings, thread, hand);
    }
  }
}

void CpuBackend::run(const ops::GroupedMatmul& op) {
  if (!op.weight.dense()) return multiply_integers({&op, 1});
  const float* x = floats(op.x, "x");
  float* y = const_cast<float*>(floats(op.y, "y"));
  const Tensor& weight = op.weight.codes;
  const Element element = element_of(weight, "weight");
  const bool interleaved = op.weight.layout == ops::WeightLayout::interleaved16;
  const bool bf16 = ops::rounds_to_bf16(op.operands, op.weight);
  CHECK(!interleaved || !bf16 || element == Element::bf16,
        "interleaved weights are not rounded to bf16");
  const int64_t outputs = op.weight.outputs(), inputs = op.weight.inputs(), y_width = op.y.dim(1);
  const int64_t weight_bytes = outputs * inputs * size_of(weight.dtype());
  products_.clear();
  for_each_group(op.offsets, op.x.dim(0), [&](int64_t group, int64_t row, int64_t rows) {
    products_.add({.m = rows,
                   .n = outputs,
                   .k = inputs,
                   .a = {x + row * inputs, inputs, Element::f32, Layout::k_contiguous},
                   .b = {static_cast<const char*>(weight.data()) + group * weight_bytes, inputs,
                         element, interleaved ? Layout::interleaved : Layout::k_contiguous},
                   .c = y + row * y_width + op.y_begin,
                   .c_stride = y_width});
  });
  products_.plan(bf16);
  if (op.x.dim(0) <= ExpectedWeights::kMostRows) {
    products_.find_places(places_);
    expected_.begin(
        {.data = weight.data(), .groups = op.weight.groups(), .group_bytes = weight_bytes},
        op.offsets.empty() ? nullptr : op.offsets.as<int32_t>(), places_);
  }
  products_.run(static_cast<float>(op.scale), op.accumulate);
}

void CpuBackend::run(const ops::GroupedMatmulInput& op) {
  const float* dy = floats(op.dy, "dy");
  float* dx = const_cast<float*>(floats(op.dx, "dx"));
  const Tensor weight = op.weight.tensor();
  const Element element = element_of(weight, "weight");
  const int64_t outputs = weight.dim(1), inputs = weight.dim(2), y_width = op.dy.dim(1);
  const int64_t weight_bytes = outputs * inputs * size_of(weight.dtype());
  products_.clear();
  for_each_group(op.offsets, op.dx.dim(0), [&](int64_t group, int64_t row, int64_t rows) {
    products_.add(
        {.m = rows,
         .n = inputs,
         .k = outputs,
         .a = {dy + row * y_width + op.dy_begin, y_width, Element::f32, Layout::k_contiguous},
         .b = {static_cast<const char*>(weight.data()) + group * weight_bytes, inputs, element,
               Layout::k_strided},
         .c = dx + row * inputs,
         .c_stride = inputs});
  });
  products_.plan(op.operands == ops::Operands::bf16);
  products_.run(static_cast<float>(op.scale), op.accumulate);
}

void CpuBackend::run(const ops::GroupedMatmulWeight& op) {
  const float* dy = floats(op.dy, "dy");
  const float* x = floats(op.x, "x");
  float* dweight = const_cast<float*>(floats(op.dweight, "dweight"));
  const int64_t outputs = op.dweight.dim(1), inputs = op.dweight.dim(2), y_width = op.dy.dim(1);
  const int64_t size = outputs * inputs;
  products_.clear();
  const auto multiply = [&](int64_t group, int64_t row, int64_t rows) {
    products_.add(
        {.m = outputs,
         .n = inputs,
         .k = rows,
         .a = {dy + row * y_width + op.dy_begin, y_width, Element::f32, Layout::k_strided},
         .b = {x + row * inputs, inputs, Element::f32, Layout::k_strided},
         .c = dweight + group * size,
         .c_stride = inputs});
  };
  const auto clear = [&](int64_t group) {
    if (!op.accumulate) std::fill_n(dweight + group * size, size, 0.f);
  };
  for_each_group(op.offsets, op.x.dim(0), multiply, clear);
  products_.plan(op.operands == ops::Operands::bf16);
  products_.run(static_cast<float>(op.scale), op.accumulate);
}

}  // namespace mixtral::cpu
