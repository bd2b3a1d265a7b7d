#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace mixtral::constrain {

/// Code points first to last.
struct CharRange {
  int32_t first = 0, last = 0;
  friend auto operator<=>(const CharRange&, const CharRange&) = default;
};

/// A set of Unicode characters: ranges in order that do not touch. Surrogates are never in it.
class CharSet {
 public:
  CharSet() = default;
  /// The union of ranges in any order.
  explicit CharSet(std::vector<CharRange> ranges);
  static CharSet one(int32_t code) { return CharSet({{code, code}}); }
  static CharSet all();
  /// Each of the ASCII characters in `text`.
  static CharSet of(std::string_view text);

  bool empty() const { return ranges_.empty(); }
  bool contains(int32_t code) const;
  /// Whether each character of `other` is in this set.
  bool covers(const CharSet& other) const;
  CharSet complement() const;
  CharSet operator|(const CharSet& other) const;
  CharSet operator&(const CharSet& other) const;
  CharSet operator-(const CharSet& other) const { return *this & other.complement(); }
  std::span<const CharRange> ranges() const { return ranges_; }
  friend auto operator<=>(const CharSet&, const CharSet&) = default;

 private:
  std::vector<CharRange> ranges_;
};

/// The characters that JSON text has in a string as they are, but for U+007F: all from U+0020 on
/// without the quotation mark and the backslash. Nearly every token of a vocabulary is made of
/// these alone, which masks take advantage of.
const CharSet& plain_chars();

}  // namespace mixtral::constrain
