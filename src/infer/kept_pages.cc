#include "infer/kept_pages.h"

#include <algorithm>

namespace mixtral {

KeptPages::KeptPages(Engine& engine) : pages_(engine.prefixes().list(engine.own_serial())) {
  for (const PrefixIndex::Kept& kept : pages_) engine.cache().retain(kept.page);
}

void KeptPages::read(Engine& engine, size_t i, const Tensor& host) const {
  engine.cache().read_page(pages_[i].page, host);
}

void KeptPages::release(Engine& engine) {
  for (const PrefixIndex::Kept& kept : pages_) engine.cache().release(kept.page);
  pages_.clear();
}

bool RestoredPages::add(Engine& engine, std::span<const int32_t> tokens, int64_t parent,
                        const Tensor& host) {
  CHECK(parent >= -1 && parent < std::ssize(places_));
  KvCache& cache = engine.cache();
  PrefixIndex& prefixes = engine.prefixes();
  CHECK(std::ssize(tokens) == cache.page_tokens());
  Place& place = places_.emplace_back();
  place.parent = parent;
  place.tokens.assign(tokens.begin(), tokens.end());
  if (parent >= 0 && places_[static_cast<size_t>(parent)].page < 0) return false;
  std::vector<const Place*> way;
  for (const Place* at = &place; at;
       at = at->parent < 0 ? nullptr : &places_[static_cast<size_t>(at->parent)])
    way.push_back(at);
  std::ranges::reverse(way);
  std::vector<int32_t> all;
  for (const Place* at : way) all.insert(all.end(), at->tokens.begin(), at->tokens.end());

  const int64_t adapter = engine.own_serial();
  std::vector<int32_t> pages = prefixes.find(all, adapter);
  if (pages.size() == way.size()) {
    place.page = pages.back();
    cache.retain(place.page);
    return true;
  }
  if (pages.size() + 1 < way.size()) return false;
  while (cache.free_pages() == 0)
    if (!prefixes.evict()) return false;
  place.page = cache.take_page();
  cache.write_page(place.page, host);
  pages.push_back(place.page);
  prefixes.add(all, adapter, pages);
  return true;
}

void RestoredPages::release(Engine& engine) {
  for (const Place& place : places_)
    if (place.page >= 0) engine.cache().release(place.page);
  places_.clear();
}

}  // namespace mixtral
