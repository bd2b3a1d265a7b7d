#include "cli/speculation_options.h"

#include <fmt/format.h>

namespace mixtral {
namespace {

constexpr int64_t kDraftTokens = 4;  // with a draft model
constexpr int64_t kMostDraftTokens = 64;

}  // namespace

void SpeculationFlags::add_to(cli::App& command) {
  command
      .add_option("--speculate,--num-speculative-tokens", tokens,
                  "Guess up to so many tokens ahead and check them in one step: faster, with the "
                  "same tokens; 0: do not (default: 0, with --draft-model 4). Guesses are looked "
                  "up in the text so far")
      ->check(cli::Range(int64_t{0}, kMostDraftTokens))
      ->group("Speculative decoding");
  command
      .add_option("--draft-model,--model-draft", draft_model,
                  "A smaller model with the same vocabulary, which makes the guesses instead")
      ->group("Speculative decoding");
}

void SpeculationFlags::apply(OpenOptions& open) const {
  open.draft_tokens = tokens.value_or(draft_model.empty() ? 0 : kDraftTokens);
  open.draft_model = draft_model;
  if (!draft_model.empty() && open.draft_tokens == 0)
    throw UsageError("--speculate 0 has no use for --draft-model; give at least 1");
}

std::string in_words(const SpeculationCounts& counts) {
  if (counts.drafted == 0) return "";
  return fmt::format(
      "speculation: {} draft tokens, {} accepted ({:.0f}%); {:.2f} times as fast as without",
      counts.drafted, counts.accepted,
      100 * static_cast<double>(counts.accepted) / static_cast<double>(counts.drafted),
      counts.gain());
}

}  // namespace mixtral
