#include "text/piece_table.h"

#include <xxhash.h>

#include <utility>

namespace mixtral {
namespace {

uint32_t hash_of(std::string_view text) {
  return static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
}

/// Fibonacci hashing: the high bits of the product are well mixed.
size_t spread(uint64_t key, size_t mask) {
  return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask;
}

}  // namespace

int32_t PieceTable::find(std::string_view text_) const {
  if (slots_.empty()) return -1;
  const uint32_t hash = hash_of(text_);
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask; slots_[i].index >= 0; i = (i + 1) & mask) {
    if (slots_[i].hash == hash && text(slots_[i].index) == text_) return slots_[i].index;
  }
  return -1;
}

int32_t PieceTable::insert(std::string_view text_) {
  if (const int32_t found = find(text_); found >= 0) return found;
  if (2 * (entries_.size() + 1) > slots_.size()) grow();
  const int32_t index = size();
  entries_.push_back({blob_.size(), static_cast<uint32_t>(text_.size())});
  blob_ += text_;
  const uint32_t hash = hash_of(text_);
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  while (slots_[i].index >= 0) i = (i + 1) & mask;
  slots_[i] = {hash, index};
  return index;
}

void PieceTable::grow() {
  std::vector<Slot> old =
      std::exchange(slots_, std::vector<Slot>(slots_.empty() ? 64 : 2 * slots_.size()));
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.index < 0) continue;
    size_t i = slot.hash & mask;
    while (slots_[i].index >= 0) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

uint32_t ByteTrie::child(uint32_t node, unsigned char byte) const {
  if (next_.empty()) return 0;
  const uint64_t key = uint64_t{node} * 256 + byte + 1;
  const size_t mask = next_.size() - 1;
  for (size_t i = spread(key, mask); next_[i].key != 0; i = (i + 1) & mask) {
    if (next_[i].key == key) return next_[i].node;
  }
  return 0;
}

void ByteTrie::insert(std::string_view key, int32_t value) {
  if (values_.empty()) values_.push_back(-1);  // the root
  uint32_t node = 0;
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(values_.size());
      values_.push_back(-1);
      if (2 * values_.size() > next_.size()) grow();
      const uint64_t edge = uint64_t{node} * 256 + byte + 1;
      const size_t mask = next_.size() - 1;
      size_t i = spread(edge, mask);
      while (next_[i].key != 0) i = (i + 1) & mask;
      next_[i] = {edge, next};
    }
    node = next;
  }
  values_[node] = value;
}

void ByteTrie::grow() {
  std::vector<Edge> old =
      std::exchange(next_, std::vector<Edge>(next_.empty() ? 64 : 2 * next_.size()));
  const size_t mask = next_.size() - 1;
  for (const Edge& edge : old) {
    if (edge.key == 0) continue;
    size_t i = spread(edge.key, mask);
    while (next_[i].key != 0) i = (i + 1) & mask;
    next_[i] = edge;
  }
}

}  // namespace mixtral
