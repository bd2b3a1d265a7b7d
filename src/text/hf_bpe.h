#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "text/piece_table.h"

namespace mixtral {

/// The BPE model of a tokenizer.json: a vocabulary and an ordered list of merges. Of all pairs of
/// neighbours the one that stands first in the list is joined, the leftmost of equals, until none
/// is left.
class HfBpe {
 public:
  HfBpe() = default;
  /// Reads the field "model". Throws Error naming what is malformed or not supported: other kinds
  /// of model, dropout, prefixes and suffixes of pieces, ids out of range or given twice, merges of
  /// pieces that are not in the vocabulary or whose result is not.
  explicit HfBpe(const Json& json);

  /// The id of a piece; -1 when there is none.
  int32_t find(std::string_view piece) const;
  /// The number of the highest id, plus 1.
  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  /// The piece of an id; empty for an id that the vocabulary leaves out.
  const std::string& piece(int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  int32_t unknown_id() const { return unknown_; }
  int64_t merges() const { return merge_count_; }
  bool byte_fallback() const { return byte_fallback_; }

  /// Never take this piece for a whole word: it is a control token, which is found in a text before
  /// it comes here, or must not be made of it.
  void forbid(int32_t id) { forbidden_[static_cast<size_t>(id)] = true; }

  /// Appends the tokens of a word. Takes any bytes; the time is O(n log n). A byte that is not
  /// UTF-8 is a character of its own.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 at the ends
    bool alive;
  };
  struct Candidate {
    uint64_t order;  // rank of the merge, then position of the left symbol: least first
    int32_t merged;
  };
  struct Merge {
    uint64_t key = kNoKey;  // left id, right id
    uint32_t rank = 0;
    int32_t merged = -1;
  };
  static constexpr uint64_t kNoKey = ~uint64_t{0};

  void read_vocabulary(const Json& json);
  void read_merges(const Json& json);
  void read_merge(std::string_view left, std::string_view right, uint32_t rank, const Json& json);
  void add_merge(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  const Merge* find_merge(int32_t left, int32_t right) const;
  std::vector<Symbol> characters(std::string_view word) const;
  void merge(std::vector<Symbol>& symbols) const;
  void consider(const std::vector<Symbol>& symbols, int32_t left,
                std::vector<Candidate>& heap) const;

  std::vector<std::string> pieces_;  // by id
  PieceTable table_;                 // every piece once
  std::vector<int32_t> ids_;         // by place in table_
  std::vector<bool> forbidden_;      // by id
  std::vector<Merge> merges_;        // open addressing; the size is a power of two
  int64_t merge_count_ = 0;
  std::array<int32_t, 256> byte_ids_{};  // of "<0x00>" to "<0xFF>"; -1 for one that is missing
  int32_t unknown_ = -1;
  bool byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
};

}  // namespace mixtral
