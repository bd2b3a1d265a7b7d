#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace mixtral::constrain {

/// The bytes of a vocabulary's tokens as two tries, each laid out in depth-first order. Control
/// tokens and the unknown token are in none. Immutable: one is made for a model and shared.
class Vocabulary {
 public:
  /// `stops` are the tokens that end a text. A mask has their bits where the text may end, and
  /// nowhere else.
  /// Control tokens of a name in `spelled` stand for that name, as if it were their text.
  explicit Vocabulary(const Tokenizer& tokenizer, std::span<const int64_t> stops = {},
                      std::span<const std::string> spelled = {});
  /// From the bytes of each token; an empty one is never allowed.
  explicit Vocabulary(std::vector<std::string> tokens, std::span<const int64_t> stops = {});

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  /// The bytes of token `id`; empty for one that stands for no text.
  const std::string& bytes(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  std::span<const int32_t> stops() const { return stops_; }
  bool is_stop(int32_t id) const;

  struct Node {
    uint8_t byte = 0;
    uint8_t depth = 0;   // of the root 0
    uint8_t chars = 0;   // the most characters below it, at a character's end; else 255
    uint16_t own = 0;    // so many tokens end here
    uint32_t first = 0;  // and stand in the trie's list of tokens from here on
    uint32_t end = 0;    // the next node that is not below this one
  };
  struct Trie {
    std::vector<Node> nodes;      // the root first, and one behind the last
    std::vector<int32_t> tokens;  // in the nodes' order
  };
  /// The tokens that are whole plain characters (see plain_chars()), at most 64 of them.
  const Trie& plain() const { return plain_; }
  /// All others.
  const Trie& rest() const { return rest_; }
  /// The bits of all tokens in plain().
  std::span<const uint32_t> plain_mask() const { return plain_mask_; }

  static constexpr int kMostPlainChars = 64;
  static constexpr size_t kLongestToken = 200;  // longer ones are never allowed

 private:
  void build();

  std::vector<std::string> tokens_;
  std::vector<int32_t> stops_;
  Trie plain_, rest_;
  std::vector<uint32_t> plain_mask_;
};

}  // namespace mixtral::constrain
