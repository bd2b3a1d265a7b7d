#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "infer/engine.h"

namespace mixtral::testing {

/// What is drawn greedily behind prompts, and the logits of the longest prompt's tokens.
struct Greedy {
  std::vector<std::vector<int32_t>> ids;
  std::vector<float> logits;
  friend bool operator==(const Greedy&, const Greedy&) = default;
};

/// Continues prompts of `lengths` tokens together by 20 tokens each. Of a vocabulary of at
/// least 40.
inline Greedy continue_prompts(Engine& engine, const std::vector<int32_t>& lengths) {
  constexpr int64_t kDrawn = 20;
  constexpr int32_t kTokens = 40;
  const auto longest = std::ranges::max_element(lengths) - lengths.begin();
  Greedy result;
  result.ids.resize(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    Request request;
    for (int32_t t = 0; t < lengths[i]; ++t)
      request.prompt.push_back((t * 7 + lengths[i]) % kTokens);
    request.options = {.sampling = {.temperature = 0}, .max_tokens = kDrawn};
    request.on_token = [&ids = result.ids[i]](const GeneratedToken& token) {
      ids.push_back(token.id);
      return Next::go_on;
    };
    if (std::cmp_equal(i, longest))
      request.on_prompt_logits = [&result](int64_t, const Tensor& rows) {
        const auto values = rows.span<float>();
        result.logits.insert(result.logits.end(), values.begin(), values.end());
      };
    engine.submit(std::move(request));
  }
  engine.run();
  return result;
}

}  // namespace mixtral::testing
