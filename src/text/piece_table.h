#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// A set of byte strings numbered in order of insertion, with a hash lookup.
class PieceTable {
 public:
  /// The number of `text`, or -1.
  int32_t find(std::string_view text) const;
  /// The number of `text`, which is added if it is new.
  int32_t insert(std::string_view text);
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  std::string_view text(int32_t index) const {
    const Entry& entry = entries_[static_cast<size_t>(index)];
    return {blob_.data() + entry.begin, entry.length};
  }

 private:
  struct Entry {
    size_t begin;
    uint32_t length;
  };
  struct Slot {
    uint32_t hash = 0;
    int32_t index = -1;
  };
  void grow();

  std::string blob_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;  // open addressing; the size is a power of two
};

/// A trie over bytes that finds the entries a text begins with.
class ByteTrie {
 public:
  bool empty() const { return next_.empty(); }
  /// Adds `key` (not empty) with `value` (not negative).
  void insert(std::string_view key, int32_t value);

  /// Calls found(length, value) for every entry that `text` begins with, shortest first.
  template <class Found>
  void for_each_prefix(std::string_view text, Found&& found) const {
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (values_[node] >= 0) found(i + 1, values_[node]);
    }
  }

  /// The longest entry that `text` begins with: its length (0 for none) and value.
  struct Match {
    size_t length = 0;
    int32_t value = -1;
  };
  Match longest_match(std::string_view text) const {
    Match match;
    for_each_prefix(text, [&](size_t length, int32_t value) { match = {length, value}; });
    return match;
  }

 private:
  // Edges (node, byte) -> node in an open-addressing table; node 0 is the root and never a child.
  uint32_t child(uint32_t node, unsigned char byte) const;
  void grow();
  struct Edge {
    uint64_t key = 0;  // node * 256 + byte + 1; 0 is empty
    uint32_t node = 0;
  };
  std::vector<Edge> next_;
  std::vector<int32_t> values_;
};

}  // namespace mixtral
