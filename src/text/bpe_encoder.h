#pragma once

#include <array>
#include <bitset>
#include <utility>
#include <vector>

#include "text/piece_encoder.h"

namespace mixtral {

/// Byte-pair encoding as SentencePiece does it: start from characters, and while two neighbours
/// together are a piece, join the pair whose piece scores highest, the leftmost of equals.
///
/// The plan, which gives exactly that result in near-linear time:
/// - Every piece and every character that occurs in one is a symbol with a number. A table maps two
///   symbols to the one they join into; it is filled from all ways of splitting each piece in two.
/// - A merge can only join across the boundary of characters a|b if some piece contains "ab". The
///   bytes around such boundaries are noted, and text is cut wherever no piece could bridge:
///   between words above all. The parts cannot influence one another, so each is encoded by itself.
/// - A part that is itself a piece, and that merging would reach (found out once, at load), is that
///   token. Others are merged with a heap over a linked list, O(n log n) for n characters.
/// - Models with "unused" pieces, which are taken apart again after merging, remember the last
/// split
///   seen anywhere in the text; for these the text is not cut.
class BpeEncoder : public PieceEncoder {
 public:
  BpeEncoder(const SentencePieceModel& model, const ByteTrie& user_defined);
  void encode(std::string_view normalized, TokenSink& sink) const override;

 private:
  struct Symbol {
    int32_t id;       // in symbols_; -1 for a character in no piece, or a user-defined piece
    int32_t token;    // what an id of -1 stands for: a user-defined piece's token, or -1
    uint32_t begin;   // bytes in the part
    uint32_t length;  // 0 once joined to its left neighbour
    int32_t previous, next;
  };
  struct Candidate {
    uint64_t order;  // rank of the merged piece, then position of the left symbol: least first
    int32_t right, merged;
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<std::pair<int32_t, int32_t>> split_of;  // by unused symbol: its last split
  };
  struct Merge {
    uint64_t key = kNoKey;  // left symbol, right symbol
    int32_t merged = -1;
  };
  static constexpr uint64_t kNoKey = ~uint64_t{0};

  void add_merge(int32_t left, int32_t right, int32_t merged);
  int32_t find_merge(int32_t left, int32_t right) const;
  bool bridged(std::string_view text, size_t at) const;
  void encode_part(std::string_view part, Scratch& scratch, TokenSink& sink) const;
  void split_characters(std::string_view part, Scratch& scratch) const;
  void merge(Scratch& scratch) const;
  void consider(int32_t left, int32_t right, Scratch& scratch) const;
  void emit(int32_t symbol, const Scratch& scratch, TokenSink& sink) const;

  const ByteTrie& user_defined_;
  PieceTable symbols_;
  std::vector<int32_t> token_of_;  // by symbol: its token, or -1 for a character that is no piece
  std::vector<uint32_t> rank_;     // by symbol: 0 for the highest score
  std::vector<bool> whole_;        // by symbol: merging its text gives just this symbol
  std::vector<bool> unused_;       // by symbol
  bool any_unused_ = false;
  std::array<int32_t, 128> ascii_{};  // symbol of each ASCII character
  size_t longest_ = 0;                // bytes of the longest symbol
  std::vector<Merge> merges_;         // open addressing; the size is a power of two
  size_t merge_count_ = 0;
  std::bitset<256 * 256> bridges_;  // [last byte of a character][first byte of the next]
  std::bitset<256> space_bridges_;  // [last byte of a character before U+2581]
};

}  // namespace mixtral
