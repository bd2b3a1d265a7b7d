#include "text/charsmap.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

// A unit of the double array. An inner unit holds its own label, the offset of its children and
// whether one of them is a leaf; a leaf, the child of label 0, holds a value in its low 31 bits.
// Bit 31 is set in leaves only, so no leaf matches a label.
bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t label(uint32_t unit) { return unit & 0x800000FFu; }
uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); }

constexpr int kMaxKeyBytes = 128;
// NFKC's longest is 33 bytes, of one character. A map that can make a text some hundred times as
// long would fill the memory.
constexpr size_t kMaxReplacementBytes = 128;

/// Depth-first walk over what lookups can reach. Subtrees may be shared (the array is built from an
/// acyclic word graph), so each unit is entered once and remembers the height below it.
class Checker {
 public:
  Checker(const std::vector<uint32_t>& units, std::string_view replacements,
          std::string_view source)
      : units_(units), replacements_(replacements), source_(source), height_(units.size(), kNew) {}

  /// Keys that continue below unit `i` at most this many bytes.
  int check(size_t i, int depth) {
    if (height_[i] == kEntered) fail("its trie has a cycle");
    if (height_[i] != kNew) return height_[i];
    if (depth > kMaxKeyBytes) fail("a key is too long");
    height_[i] = kEntered;
    const size_t children = i ^ offset(units_[i]);
    if ((children | 0xFF) >= units_.size()) fail("a trie unit points outside the trie");
    if (has_leaf(units_[i])) check_replacement(value(units_[children]));
    int height = 0;
    for (uint32_t byte = 1; byte < 256; ++byte) {
      if (label(units_[children ^ byte]) == byte) {
        height = std::max(height, 1 + check(children ^ byte, depth + 1));
      }
    }
    if (depth + height > kMaxKeyBytes) fail("a key is too long");
    height_[i] = static_cast<int16_t>(height);
    return height;
  }

 private:
  static constexpr int16_t kNew = -1, kEntered = -2;

  void check_replacement(size_t at) const {
    if (at >= replacements_.size()) fail("a rule points outside the replacements");
    const size_t end = replacements_.find('\0', at);  // there is one: the last byte is NUL
    if (end - at > kMaxReplacementBytes)
      fail(fmt::format("a replacement has more than {} bytes", kMaxReplacementBytes));
    if (!is_valid_utf8(replacements_.substr(at, end - at))) fail("a replacement is not UTF-8");
  }

  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(fmt::format("{}: the normaliser's character map is damaged: {}", source_, reason));
  }

  const std::vector<uint32_t>& units_;
  std::string_view replacements_, source_;
  std::vector<int16_t> height_;
};

}  // namespace

Charsmap::Charsmap(std::string_view blob, std::string_view source) {
  const auto word = [&](size_t at) {
    uint32_t result = 0;
    for (size_t i = 0; i < 4; ++i) {
      result |= uint32_t{static_cast<unsigned char>(blob[at + i])} << (8 * i);
    }
    return result;
  };
  const size_t trie_bytes = blob.size() < 4 ? 0 : word(0);
  if (trie_bytes == 0 || trie_bytes % 1024 != 0 || trie_bytes > blob.size() - 4) {
    throw Error(fmt::format(
        "{}: the normaliser's character map is damaged: {} bytes with a trie of {}, expected a "
        "multiple of 1024 that fits",
        source, blob.size(), trie_bytes));
  }
  units_.resize(trie_bytes / 4);
  for (size_t i = 0; i < units_.size(); ++i) units_[i] = word(4 + 4 * i);
  replacements_ = blob.substr(4 + trie_bytes);
  if (replacements_.empty() || replacements_.back() != '\0') {
    throw Error(fmt::format(
        "{}: the normaliser's character map is damaged: its replacements do not end in NUL",
        source));
  }
  Checker(units_, replacements_, source).check(0, 0);
}

Charsmap::Match Charsmap::longest_match(std::string_view text) const {
  Match match;
  if (units_.empty()) return match;
  size_t at = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // A NUL is no label: label 0 marks leaves.
    if (byte == 0) break;
    at ^= byte;
    const uint32_t unit = units_[at];
    if (label(unit) != byte) break;
    at ^= offset(unit);
    if (has_leaf(unit)) {
      match.length = i + 1;
      match.replacement = replacements_.c_str() + value(units_[at]);
    }
  }
  return match;
}

}  // namespace mixtral
