#include "infer/prompt_lookup.h"

#include <algorithm>

namespace mixtral {
namespace {

constexpr int64_t kShortestMatch = 2, kLongestMatch = 16;

}  // namespace

LookedUp look_up(std::span<const int32_t> tokens, int64_t most) {
  LookedUp found;
  const auto count = static_cast<int64_t>(tokens.size());
  if (most <= 0 || count <= kShortestMatch) return found;
  const auto at = [&](int64_t i) { return tokens[static_cast<size_t>(i)]; };
  const int32_t last = at(count - 1);
  int64_t end = -1;  // of the place: what follows begins here
  for (int64_t i = count - 2; i >= kShortestMatch - 1; --i) {
    if (at(i) != last) continue;
    int64_t matched = 1;
    const int64_t limit = std::min(kLongestMatch, i + 1);
    while (matched < limit && at(i - matched) == at(count - 1 - matched)) ++matched;
    if (matched < kShortestMatch || matched <= found.matched) continue;
    found.matched = matched;
    end = i + 1;
    if (matched == kLongestMatch) break;
  }
  if (end < 0) return found;
  // Behind the sequence's end the draft itself goes on.
  for (int64_t i = 0; i < most; ++i) {
    const int64_t from = end + i;
    found.tokens.push_back(from < count ? at(from)
                                        : found.tokens[static_cast<size_t>(from - count)]);
  }
  return found;
}

}  // namespace mixtral
