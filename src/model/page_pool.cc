#include "model/page_pool.h"

#include "base/error.h"

namespace mixtral {

PagePool::PagePool(int64_t pages) : owners_(static_cast<size_t>(pages), 0) {
  CHECK(pages >= 0 && pages <= INT32_MAX);
  for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
}

int32_t PagePool::allocate() {
  CHECK(!free_.empty(), "no page is free");
  const int32_t page = free_.back();
  free_.pop_back();
  owners_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::retain(int32_t page) {
  CHECK(page >= 0 && page < size() && owners(page) > 0, "a page that nobody owns is retained");
  ++owners_[static_cast<size_t>(page)];
}

void PagePool::release(int32_t page) {
  CHECK(page >= 0 && page < size() && owners(page) > 0, "a page that nobody owns is released");
  if (--owners_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

}  // namespace mixtral
