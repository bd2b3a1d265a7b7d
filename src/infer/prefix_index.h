#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "model/kv_cache.h"

namespace mixtral {

/// Full pages of the cache by the tokens that they hold and those before them: a tree with a page
/// at each node. It owns a share of each page, so that a later sequence that begins with the same
/// tokens can use them (Zheng et al. 2024, "SGLang": RadixAttention).
class PrefixIndex {
 public:
  explicit PrefixIndex(KvCache& cache) : cache_(cache) {}
  ~PrefixIndex() { clear(); }
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  /// The pages of the longest beginning of `tokens` that is here, of those computed with `adapter`
  /// (a number that stays its own, AdapterSet::serial).
  /// They stay while nothing is evicted; the caller retains them.
  std::vector<int32_t> find(std::span<const int32_t> tokens, int64_t adapter);

  /// Keeps full pages of a sequence with these tokens: page i holds tokens i·T .. (i+1)·T − 1.
  /// Stops at the first whose tokens are here in another page; returns the number of pages before
  /// it.
  size_t add(std::span<const int32_t> tokens, int64_t adapter, std::span<const int32_t> pages);

  /// Gives back the page that was unused for the longest time, of those that no sequence has and no
  /// other page follows. False when there is no such page.
  bool evict();
  /// Pages that calls of evict() would free.
  int64_t evictable() const;
  /// Gives back all pages, or those of an adapter that is gone.
  void clear();
  void forget(int64_t adapter);

  int64_t pages() const { return pages_; }  // that are kept

  /// A page and what it holds.
  struct Kept {
    int32_t page = 0;
    int64_t parent = -1;  // where in the list the page before it is; −1: it is the first
    std::vector<int32_t> tokens;
  };
  /// The pages of one adapter's prompts, each behind the one that it follows.
  std::vector<Kept> list(int64_t adapter) const;

 private:
  struct Node {
    int32_t page = 0;
    Node* parent = nullptr;
    std::vector<int32_t> tokens;
    int64_t last_used = 0;
    std::map<std::vector<int32_t>, std::unique_ptr<Node>> children;
  };

  static Node* child(const Node& node, std::span<const int32_t> tokens);
  /// Marks a page as used, and then those before it: they are the later ones in by_time_.
  void use(Node* last);

  KvCache& cache_;
  std::map<int64_t, Node> roots_;                // an adapter each; their page is none
  std::set<std::pair<int64_t, Node*>> by_time_;  // all nodes, by last_used
  int64_t clock_ = 0, pages_ = 0;
};

}  // namespace mixtral
