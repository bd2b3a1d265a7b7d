#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/tokenizer.h"

namespace mixtral {

/// Finds control tokens that are spelled out in plain text, such as "<s>[INST]": encode() makes
/// ordinary pieces of them, which is seldom what their writer meant.
class SpelledControls {
 public:
  explicit SpelledControls(const Tokenizer& tokenizer);
  /// Those in `text`, each once, in order of appearance.
  std::vector<std::string> find(std::string_view text) const;

 private:
  TokenFinder finder_;
  std::vector<std::string> texts_;  // by the ids that finder_ finds
};

/// A character that Unicode keeps for programs' own use. Within a control token's text it keeps
/// encode_prompt() from finding it there, and is left out of what is encoded.
inline constexpr std::string_view kPlainTextMark = "\uFDD0";

/// `text` with the mark in every text that encode_prompt() would take for a control token.
std::string mark_as_plain(std::string_view text, const std::vector<std::string>& controls);
/// `text` without marks.
std::string without_plain_marks(std::string_view text);

}  // namespace mixtral
