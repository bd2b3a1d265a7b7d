#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixtral::constrain {

/// Lists of small plain items, each kept once and known by a number. `Item` is compared and hashed
/// by its bytes, and so must have no padding.
template <class Item>
class InternedLists {
  static_assert(std::has_unique_object_representations_v<Item>);

 public:
  /// The number of the list, and whether it is new.
  std::pair<uint32_t, bool> add(std::span<const Item> items) {
    const uint64_t hash = hash_of(items);
    const auto [first, last] = by_hash_.equal_range(hash);
    for (auto known = first; known != last; ++known)
      if (equal((*this)[known->second], items)) return {known->second, false};
    const auto id = static_cast<uint32_t>(size());
    items_.insert(items_.end(), items.begin(), items.end());
    ends_.push_back(items_.size());
    by_hash_.emplace(hash, id);
    return {id, true};
  }
  /// Valid until the next add().
  std::span<const Item> operator[](uint32_t id) const {
    const size_t begin = id == 0 ? 0 : ends_[id - 1];
    return std::span(items_).subspan(begin, ends_[id] - begin);
  }
  size_t size() const { return ends_.size(); }
  size_t bytes() const { return items_.size() * sizeof(Item) + ends_.size() * 64; }

 private:
  static bool equal(std::span<const Item> a, std::span<const Item> b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
  }
  static uint64_t hash_of(std::span<const Item> items) {
    uint64_t hash = items.size() + 1;
    const auto* bytes = reinterpret_cast<const unsigned char*>(items.data());
    for (size_t i = 0; i + 4 <= items.size_bytes(); i += 4) {
      uint32_t word = 0;
      std::memcpy(&word, bytes + i, 4);
      hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return hash;
  }

  std::vector<Item> items_;
  std::vector<size_t> ends_;
  std::unordered_multimap<uint64_t, uint32_t> by_hash_;
};

}  // namespace mixtral::constrain
