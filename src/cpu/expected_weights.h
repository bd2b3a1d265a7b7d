#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

namespace mixtral::cpu {

/// Which weights the next product reads, and fetching their first bytes while threads wait: for one
/// another at a product's end, or for the small ops between products, which one thread computes. So
/// memory does not rest meanwhile.
///
/// The products of a decoding step come in the same order every time. So it is enough to remember
/// which one came after each, and where in its weights the threads began. Nothing depends on
/// whether that is right.
///
/// All but `fetch` belongs to the thread that calls the backend.
class ExpectedWeights {
 public:
  /// Products of more rows are not bound by reading their weights.
  static constexpr int64_t kMostRows = 16;

  explicit ExpectedWeights(int threads);
  int threads() const { return static_cast<int>(targets_.size()); }

  /// Where a thread begins: so many bytes, `offset` bytes into the n-th of the groups with rows.
  struct Place {
    int64_t group = 0, offset = 0, bytes = 0;
  };
  /// A weight of groups one after another.
  struct Weight {
    const void* data = nullptr;
    int64_t groups = 1, group_bytes = 0;
  };
  /// A product of few rows begins. `offsets` [groups + 1]: each group's rows; null where there is
  /// one group. `places`: a thread each; those that have none help the first.
  void begin(const Weight& weight, const int32_t* offsets, std::span<const Place> places);
  /// The rows of the groups of the next product are known.
  void route(const int32_t* offsets, int64_t groups);

  /// Fetches a little of what the thread is expected to need next.
  void fetch(int thread);
  /// All that it is expected to need, as far as it would fetch it.
  std::span<const uint8_t> target(int thread) const;

 private:
  struct Product {
    Weight weight;
    std::vector<Place> places;
    const void* next = nullptr;
  };
  /// Written by the calling thread, read by the one that fetches. A mixture of old and new is a
  /// useless address, which does no harm.
  struct alignas(64) Target {
    std::atomic<const uint8_t*> begin{nullptr};
    std::atomic<int64_t> bytes{0};
    // The fetching thread's own.
    uint32_t version = 0;
    const uint8_t *at = nullptr, *end = nullptr;
  };

  void expect(const Product& product);
  /// Lists the groups that have rows.
  void list_groups(const int32_t* offsets, int64_t groups);

  std::vector<Target> targets_;
  std::atomic<uint32_t> version_{0};  // of the targets
  std::unordered_map<const void*, Product> products_;
  Product* last_ = nullptr;
  std::vector<int64_t> groups_;  // those with rows
};

}  // namespace mixtral::cpu
