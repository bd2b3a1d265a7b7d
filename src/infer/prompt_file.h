#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "infer/methods.h"
#include "text/chat_template.h"

namespace mixtral {

/// A line of a file of prompts.
struct PromptRow {
  std::vector<int32_t> prompt;
  TextOptions how;                     // but for the adapter
  std::optional<std::string> adapter;  // its name; nothing: the default
  std::string source;                  // for errors: "rows.jsonl:12"
};

/// What a file of prompts is read with.
struct PromptRules {
  const Tokenizer* tokenizer = nullptr;                   // null: prompts are token ids
  ChatTemplate chat_template = ChatTemplate::mistral_v1;  // of {"messages"}
  int64_t vocab_size = 0;                                 // of the model
  TextOptions defaults;                                   // of rows that say nothing else
};

/// The prompts of a .jsonl file, an object a line: "prompt" (text), "ids" (token ids, to which no
/// BOS is added) or "messages" (a conversation to reply to); and, if wanted, "max_tokens", "temp",
/// "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop" (a text or a list
/// of texts) and "adapter" (its name). A null is as if the field were absent. Throws Error
/// "FILE:LINE: reason" for a line that is something else, also where a field is unknown, of the
/// wrong type or out of range.
std::vector<PromptRow> read_prompts(const std::filesystem::path& file, const PromptRules& rules);

/// Continues the rows from `first` on, as many at once as the engine takes, and gives each one's
/// result to `take`, in the order in which they are done. Stops early, with those that are done,
/// when `stopped` says so.
void generate_rows(Engine& engine, const Tokenizer* tokenizer, const std::vector<PromptRow>& rows,
                   int64_t first,
                   const std::function<void(int64_t row, const GeneratedText&)>& take,
                   const std::function<bool()>& stopped);

}  // namespace mixtral
