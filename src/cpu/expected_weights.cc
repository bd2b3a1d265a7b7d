#include "cpu/expected_weights.h"

#include <algorithm>

namespace mixtral::cpu {
namespace {

constexpr size_t kMostProducts = 1 << 14;
constexpr int64_t kMostBytes = 512 << 10;  // that a thread fetches: a part of its L2 cache
constexpr int64_t kLine = 64;
// With a pause behind them about as fast as memory gives them to one thread. Of more at once the
// processor drops some.
constexpr int64_t kLinesAtOnce = 10;

}  // namespace

ExpectedWeights::ExpectedWeights(int threads) : targets_(static_cast<size_t>(threads)) {}

void ExpectedWeights::list_groups(const int32_t* offsets, int64_t groups) {
  groups_.clear();
  for (int64_t g = 0; g < groups; ++g)
    if (!offsets || offsets[g] < offsets[g + 1]) groups_.push_back(g);
}

void ExpectedWeights::begin(const Weight& weight, const int32_t* offsets,
                            std::span<const Place> places) {
  if (products_.size() > kMostProducts) {  // weights that came and went
    products_.clear();
    last_ = nullptr;
  }
  if (last_) last_->next = weight.data;
  Product& product = products_[weight.data];
  product.weight = weight;
  product.places.assign(places.begin(), places.end());
  last_ = &product;
  const auto next = products_.find(product.next);
  if (next == products_.end()) return;
  const int64_t groups = next->second.weight.groups;
  // Experts' second product has the rows of the first; before the first they are not known.
  if (groups == 1)
    list_groups(nullptr, 1);
  else if (offsets && groups == weight.groups)
    list_groups(offsets, groups);
  else
    groups_.clear();
  expect(next->second);
}

void ExpectedWeights::route(const int32_t* offsets, int64_t groups) {
  if (!last_) return;
  const auto next = products_.find(last_->next);
  if (next == products_.end() || next->second.weight.groups != groups) return;
  list_groups(offsets, groups);
  expect(next->second);
}

void ExpectedWeights::expect(const Product& product) {
  const auto* data = static_cast<const uint8_t*>(product.weight.data);
  for (size_t t = 0; t < targets_.size(); ++t) {
    int64_t bytes = 0;
    if (!product.places.empty()) {
      const Place& place = product.places[t < product.places.size() ? t : 0];
      const auto group = static_cast<size_t>(place.group);
      if (group < groups_.size()) {
        bytes = std::min(place.bytes, kMostBytes);
        targets_[t].begin.store(data + groups_[group] * product.weight.group_bytes + place.offset,
                                std::memory_order_relaxed);
      }
    }
    targets_[t].bytes.store(bytes, std::memory_order_relaxed);
  }
  version_.fetch_add(1, std::memory_order_release);
}

std::span<const uint8_t> ExpectedWeights::target(int thread) const {
  const Target& target = targets_[static_cast<size_t>(thread)];
  return {target.begin.load(std::memory_order_relaxed),
          static_cast<size_t>(target.bytes.load(std::memory_order_relaxed))};
}

void ExpectedWeights::fetch(int thread) {
  Target& target = targets_[static_cast<size_t>(thread)];
  const uint32_t version = version_.load(std::memory_order_acquire);
  if (target.version != version) {
    target.version = version;
    target.at = target.begin.load(std::memory_order_relaxed);
    target.end = target.at + target.bytes.load(std::memory_order_relaxed);
  }
  if (target.at >= target.end) return;
  const uint8_t* const stop = std::min(target.end, target.at + kLinesAtOnce * kLine);
  for (; target.at < stop; target.at += kLine) __builtin_prefetch(target.at, 0, 2);
}

}  // namespace mixtral::cpu
