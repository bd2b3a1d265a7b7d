#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mixtral {

/// Tokens that stood behind an earlier occurrence of a sequence's end.
struct LookedUp {
  std::vector<int32_t> tokens;
  int64_t matched = 0;  // tokens of the end that occurred there
};

/// Looks for the longest end of `tokens`, of 2 to 16 tokens, that occurs earlier among them, and
/// returns the `most` tokens that followed it, or none; of several such places, the latest (Saxena
/// 2023, "Prompt lookup decoding"). Where a text repeats a short period, what follows reaches the
/// end of `tokens`; from there on the result repeats itself.
LookedUp look_up(std::span<const int32_t> tokens, int64_t most);

}  // namespace mixtral
