#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// SentencePiece's precompiled character map: a trie of strings, each with what it is rewritten to.
/// The file's form is a 32-bit size, a trie of that size as a double array (Yata's XOR-addressed
/// layout, as darts-clone writes it), then NUL-terminated replacements that the leaves point into.
class Charsmap {
 public:
  Charsmap() = default;
  /// Checks every unit that a lookup can reach, so that lookups need no more trust: children and
  /// replacements in range, no cycles, keys and replacements of sane length, replacements UTF-8.
  /// Throws Error naming `source` otherwise.
  Charsmap(std::string_view blob, std::string_view source);

  bool empty() const { return units_.empty(); }

  struct Match {
    size_t length = 0;  // bytes of the longest key that the text begins with; 0 for none
    std::string_view replacement;
  };
  Match longest_match(std::string_view text) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace mixtral
