#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "infer/engine.h"

namespace mixtral {

/// The pages that an engine keeps of the model's own prompts, taken out while it goes on: they stay
/// until release(). Each function is called between two of the engine's steps.
class KeptPages {
 public:
  explicit KeptPages(Engine& engine);

  const std::vector<PrefixIndex::Kept>& pages() const { return pages_; }
  /// Copies the i-th into host memory of KvCache::page_shape().
  void read(Engine& engine, size_t i, const Tensor& host) const;
  void release(Engine& engine);

 private:
  std::vector<PrefixIndex::Kept> pages_;
};

/// Puts pages back into an engine with the same model, each behind the one that it follows. Pages
/// that are there already stay as they are; where none is free, those go that were unused for the
/// longest time. Each function is called between two of the engine's steps.
class RestoredPages {
 public:
  /// The next page: its tokens, the place of the page before it among those given so far (−1: it is
  /// the first), and its contents. Returns whether it is there now: false where no page is free, or
  /// the one before it is missing.
  bool add(Engine& engine, std::span<const int32_t> tokens, int64_t parent, const Tensor& host);
  /// After the last.
  void release(Engine& engine);

 private:
  struct Place {
    int32_t page = -1;  // −1: it is not there
    int64_t parent = -1;
    std::vector<int32_t> tokens;
  };
  std::vector<Place> places_;
};

}  // namespace mixtral
