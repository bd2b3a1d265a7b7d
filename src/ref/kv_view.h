#pragma once

#include <vector>

#include "ops/kv_view.h"
#include "ref/array.h"

namespace mixtral::ref {

/// Tokens first .. last of one sequence in a cache. Throws InternalError where a page is missing.
class CachedTokens {
 public:
  CachedTokens(const ops::KvView& cache, int64_t sequence, int64_t first, int64_t last)
      : first_(first),
        keys_(cache.keys.reshape(entries(cache))),
        values_(cache.values.reshape(entries(cache))) {
    check_pages(cache, sequence, first, last);
    const Integers table(cache.table);
    const int64_t size = cache.page_tokens();
    for (int64_t t = first; t <= last; ++t)
      entry_.push_back(table(sequence, t / size) * size + t % size);
  }

  /// Element c of kv head `head` of token t.
  Floats::Element key(int64_t t, int64_t head, int64_t c) const {
    return keys_(entry_of(t), head, c);
  }
  Floats::Element value(int64_t t, int64_t head, int64_t c) const {
    return values_(entry_of(t), head, c);
  }

 private:
  static Shape entries(const ops::KvView& cache) {
    return {cache.pages() * cache.page_tokens(), cache.keys.dim(2), cache.keys.dim(3)};
  }
  int64_t entry_of(int64_t t) const { return entry_[static_cast<size_t>(t - first_)]; }

  int64_t first_;
  Floats keys_, values_;
  std::vector<int64_t> entry_;
};

}  // namespace mixtral::ref
