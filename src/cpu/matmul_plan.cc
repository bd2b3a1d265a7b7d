#include "cpu/matmul_plan.h"

#include <algorithm>

namespace mixtral::cpu {
namespace {

// The packed block that stays in the L2 cache, of A or of B, has at most kStayLines lines; those of
// the other operand pass over it. Its length in k leaves room for the partial sums of C.
constexpr int64_t kStayLines = 304;
constexpr int64_t kPartialSums = 64 << 10;  // of an item where k is cut
constexpr int64_t kFewTiles = 4;            // at most, of a product with few rows,
constexpr int64_t kFewBlocks = 16;          // and packed row tiles
constexpr int64_t kItemsPerThread = 8;
constexpr int64_t kReusingItemsPerThread = 24;  // of items that find packed what they need
constexpr double kMinItemWork = 1 << 19;        // multiply-adds: a few microseconds

/// Part `i` of `parts` nearly equal ones of [0, total), in multiples of `grain`.
int64_t part_begin(int64_t total, int64_t grain, int64_t parts, int64_t i) {
  return std::min(total, divide_up(total, grain) * i / parts * grain);
}

}  // namespace

bool streams(const Product& p, const Kernels& kernels) {
  return p.m <= kernels.stream_rows && p.a.layout == Layout::k_contiguous &&
         p.b.layout != Layout::k_strided && !p.transposed;
}

bool has_few_rows(const Product& p, const Kernels& kernels) {
  return p.m <= kFewTiles * kernels.rows && p.b.layout != Layout::k_strided &&
         divide_up(p.m, kernels.rows) * divide_up(p.k, kBlockUnits * kernels.unit) <= kFewBlocks;
}

bool rows_stay(const Product& p) { return p.m <= p.n; }

void Products::divide(const Kernels& kernels) {
  items_.clear();
  groups_.clear();
  double work = 0;
  for (Product& p : products_) {
    CHECK(p.m > 0 && p.n > 0 && p.k > 0);
    // A panel is computed whole: where C has few columns (a router's, an adapter's) but many rows,
    // its transpose wastes less. The sums are the same.
    if (4 * p.n <= 3 * kernels.columns && p.m >= kernels.columns &&
        p.b.layout != Layout::interleaved) {
      std::swap(p.m, p.n);
      std::swap(p.a, p.b);
      p.transposed = !p.transposed;
    }
    work += static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  }
  const auto share = [&](int64_t items) {
    return std::max(work / static_cast<double>(items * pool_.size()), kMinItemWork);
  };
  const double target = share(kItemsPerThread), reusing_target = share(kReusingItemsPerThread);
  // The largest products first, so that the small ones fill the gaps at the end. In which order
  // equal ones stand makes no difference to any result.
  std::sort(products_.begin(), products_.end(),
            [](const Product& x, const Product& y) { return x.m * x.k > y.m * y.k; });
  for (const Product& p : products_) {
    const auto part = [&](int64_t lines, double most) {
      const double line = static_cast<double>(p.k) * static_cast<double>(lines);
      return static_cast<int64_t>(std::clamp(most / line, 1.0, 1e9));
    };
    if (streams(p, kernels) || has_few_rows(p, kernels)) {
      const int64_t columns = even_part(p.n, part(p.m, target), kernels.columns);
      for (int64_t n = 0; n < p.n; n += columns) {
        groups_.push_back({items_.size(), items_.size() + 1});
        items_.push_back({&p, 0, p.m, n, std::min(n + columns, p.n)});
      }
      continue;
    }
    const bool rows = rows_stay(p), cut = divide_up(p.k, kernels.unit) > kBlockUnits;
    const int64_t stay = rows ? p.m : p.n, pass = rows ? p.n : p.m;
    const int64_t stay_grain = rows ? kernels.rows : kernels.columns;
    const int64_t pass_grain =
        rows ? kernels.columns * (p.b.layout == Layout::k_strided ? kStridedPanels : 1)
             : kernels.rows * (p.a.layout == Layout::k_strided ? kStridedTiles : 1);
    const int64_t stay_parts = divide_up(stay, std::max(kStayLines, stay_grain));
    const int64_t stay_lines = divide_up(stay, stay_parts);
    const int64_t most = cut ? std::min(part(stay_lines, target), kPartialSums / stay_lines)
                             : part(stay_lines, reusing_target);
    const int64_t pass_parts =
        std::min(divide_up(pass, std::max(most, pass_grain)), divide_up(pass, pass_grain));
    for (int64_t i = 0; i < stay_parts; ++i) {
      const int64_t s = part_begin(stay, stay_grain, stay_parts, i);
      const int64_t s_end = part_begin(stay, stay_grain, stay_parts, i + 1);
      if (s == s_end) continue;
      groups_.push_back({items_.size(), items_.size()});
      for (int64_t j = 0; j < pass_parts; ++j) {
        const int64_t t = part_begin(pass, pass_grain, pass_parts, j);
        const int64_t t_end = part_begin(pass, pass_grain, pass_parts, j + 1);
        if (t == t_end) continue;
        items_.push_back(rows ? Item{&p, s, s_end, t, t_end} : Item{&p, t, t_end, s, s_end});
      }
      groups_.back().end = items_.size();
    }
  }
  if (taken_.size() < groups_.size()) taken_ = std::vector<std::atomic<size_t>>(2 * groups_.size());
  for (size_t g = 0; g < groups_.size(); ++g)
    taken_[g].store(groups_[g].begin, std::memory_order_relaxed);
  next_group_.store(0, std::memory_order_relaxed);
}

const Products::Item* Products::take(Hand& hand) {
  const auto take_of = [&](size_t group) -> const Item* {
    // Looked at first, so that it does not grow without end.
    if (taken_[group].load(std::memory_order_relaxed) >= groups_[group].end) return nullptr;
    const size_t item = taken_[group].fetch_add(1, std::memory_order_relaxed);
    if (item >= groups_[group].end) return nullptr;
    hand.group = group;
    return &items_[item];
  };
  if (hand.group < groups_.size())
    if (const Item* item = take_of(hand.group)) return item;
  while (next_group_.load(std::memory_order_relaxed) < groups_.size()) {
    const size_t group = next_group_.fetch_add(1, std::memory_order_relaxed);
    if (group >= groups_.size()) break;
    if (const Item* item = take_of(group)) return item;
  }
  while (true) {  // help with the group that has most left
    size_t most = 0, best = groups_.size();
    for (size_t g = 0; g < groups_.size(); ++g) {
      const size_t taken = taken_[g].load(std::memory_order_relaxed);
      if (taken >= groups_[g].end || groups_[g].end - taken <= most) continue;
      most = groups_[g].end - taken;
      best = g;
    }
    if (best == groups_.size()) return nullptr;
    if (const Item* item = take_of(best)) return item;
  }
}

const Products::Item* Products::expected(const Hand& hand) const {
  const size_t item = taken_[hand.group].load(std::memory_order_relaxed);
  if (item < groups_[hand.group].end) return &items_[item];
  const size_t group = next_group_.load(std::memory_order_relaxed);
  return group < groups_.size() ? &items_[groups_[group].begin] : nullptr;
}

}  // namespace mixtral::cpu
