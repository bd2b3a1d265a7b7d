#include "constrain/char_set.h"

#include <algorithm>

namespace mixtral::constrain {
namespace {

constexpr int32_t kLastChar = 0x10FFFF;
constexpr CharRange kSurrogates{0xD800, 0xDFFF};

}  // namespace

CharSet::CharSet(std::vector<CharRange> ranges) {
  std::ranges::sort(ranges);
  const auto add = [&](CharRange range) {
    if (range.first > range.last) return;
    if (!ranges_.empty() && range.first <= ranges_.back().last + 1)
      ranges_.back().last = std::max(ranges_.back().last, range.last);
    else
      ranges_.push_back(range);
  };
  for (const CharRange& range : ranges) {
    add({range.first, std::min(range.last, kSurrogates.first - 1)});
    add({std::max(range.first, kSurrogates.last + 1), std::min(range.last, kLastChar)});
  }
}

CharSet CharSet::all() { return CharSet({{0, kLastChar}}); }

CharSet CharSet::of(std::string_view text) {
  std::vector<CharRange> ranges;
  for (const char c : text) ranges.push_back({c, c});
  return CharSet(std::move(ranges));
}

bool CharSet::contains(int32_t code) const {
  const auto above =
      std::ranges::upper_bound(ranges_, code, {}, [](const CharRange& r) { return r.first; });
  return above != ranges_.begin() && std::prev(above)->last >= code;
}

bool CharSet::covers(const CharSet& other) const { return (other & complement()).empty(); }

CharSet CharSet::complement() const {
  std::vector<CharRange> gaps;
  int32_t next = 0;
  for (const CharRange& range : ranges_) {
    if (range.first > next) gaps.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastChar) gaps.push_back({next, kLastChar});
  return CharSet(std::move(gaps));
}

CharSet CharSet::operator|(const CharSet& other) const {
  std::vector<CharRange> both = ranges_;
  both.insert(both.end(), other.ranges_.begin(), other.ranges_.end());
  return CharSet(std::move(both));
}

CharSet CharSet::operator&(const CharSet& other) const {
  std::vector<CharRange> common;
  for (auto a = ranges_.begin(), b = other.ranges_.begin();
       a != ranges_.end() && b != other.ranges_.end();) {
    const CharRange both{std::max(a->first, b->first), std::min(a->last, b->last)};
    if (both.first <= both.last) common.push_back(both);
    if (a->last < b->last)
      ++a;
    else
      ++b;
  }
  return CharSet(std::move(common));
}

const CharSet& plain_chars() {
  static const CharSet plain =
      CharSet({{0x20, kLastChar}}) - CharSet::of("\"\\") - CharSet::one(0x7F);
  return plain;
}

}  // namespace mixtral::constrain
