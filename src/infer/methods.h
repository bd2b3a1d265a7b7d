#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/engine.h"
#include "infer/text_stream.h"
#include "text/tokenizer.h"

// The ways to generate, under the names they had in the Python project that this program grew from.
// Each submits requests to an engine and steps it until they are done.
namespace mixtral {

/// What to generate, and what may end it besides tokens.
struct TextOptions {
  GenerationOptions tokens;
  std::vector<std::string> stop;    // texts that end the generation and are not part of the result
  std::function<bool()> cancelled;  // asked after each token; true ends the generation
  int32_t adapter = kOwnAdapter;    // as Request::adapter
};

struct GeneratedText {
  std::vector<GeneratedToken> tokens;
  std::string text;  // of the new tokens, whole characters, without the stop text
  FinishReason reason = FinishReason::length;
  double prompt_seconds = 0, decode_seconds = 0;  // until the first token, and from there on
};

/// The tokens of a prompt: BOS where the tokenizer has one, then the text's.
std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text);

/// Steps until none of these requests is left. When a step throws, cancels them: what their
/// functions refer to may be gone afterwards.
void run_requests(Engine& engine, std::span<const RequestId> ids);

/// Submits a prompt to be continued with sampled text. `result` is filled in while the engine
/// steps; it, `options` and the tokenizer must outlive the request. `tokenizer` may be null: then
/// there is no text, only ids. Nor is there of ids that the tokenizer does not have. `on_finish`
/// (may be empty) is called when the result is complete.
RequestId submit_text(Engine& engine, const Tokenizer* tokenizer, std::vector<int32_t> prompt,
                      const TextOptions& options, GeneratedText& result, TextSink sink = {},
                      std::function<void()> on_finish = {});

/// The same for one prompt alone: returns when it is done.
GeneratedText generate(Engine& engine, const Tokenizer* tokenizer,
                       const std::vector<int32_t>& prompt, const TextOptions& options,
                       const TextSink& sink = {});

/// The logits of every token of a prompt, [T, V] row by row.
std::vector<float> generate_raw(Engine& engine, const std::vector<int32_t>& prompt,
                                int64_t vocabulary);

/// One sampled token.
GeneratedToken generate_one_token(Engine& engine, const std::vector<int32_t>& prompt,
                                  const GenerationOptions& options);

/// One token, the most probable one, together with the next best.
struct RankedToken {
  int32_t id = 0;
  double probability = 0;
};
std::vector<RankedToken> just_generate_one_god_damn_token(Engine& engine,
                                                          const std::vector<int32_t>& prompt,
                                                          int64_t vocabulary, int64_t best);

/// A sample after a training run: streams a continuation of `prompt` to `sink`, ending with a new
/// line, at the settings that show a young model best (temperature 0.8, top-p 0.95).
GeneratedText generate_after_training(Engine& engine, const Tokenizer& tokenizer,
                                      std::string_view prompt, int64_t max_tokens, uint64_t seed,
                                      const TextSink& sink);

}  // namespace mixtral
