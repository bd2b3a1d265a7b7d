#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mixtral {

/// Which pages of a fixed number are in use, and by how many owners. A page that no owner is left
/// of is free. Pages are numbers; what they hold is their owners' concern.
class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t size() const { return static_cast<int64_t>(owners_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t owners(int32_t page) const { return owners_[static_cast<size_t>(page)]; }

  /// A free page, which now has one owner. There must be one (free_pages).
  int32_t allocate();
  /// One more owner of a page in use.
  void retain(int32_t page);
  /// One owner less; the last one's frees the page.
  void release(int32_t page);

 private:
  std::vector<int32_t> owners_;  // of each page
  std::vector<int32_t> free_;    // the next to allocate is the last
};

}  // namespace mixtral
