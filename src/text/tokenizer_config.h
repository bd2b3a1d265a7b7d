#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"

namespace mixtral {

/// What Hugging Face's files beside a tokenizer say: tokenizer_config.json,
/// special_tokens_map.json, added_tokens.json, chat_template.jinja and chat_template.json. What is
/// null or absent is empty.
struct TokenizerConfig {
  struct Template {
    std::string name;    // "default", "tool_use", "rag"
    std::string text;    // Jinja
    std::string source;  // the file, for messages
  };

  std::optional<std::string> bos, eos, unk, pad;
  std::vector<AddedToken> added;  // with their ids, in the order of these
  std::optional<bool> add_bos, add_eos;
  bool legacy = true;  // SentencePiece puts a space after each added token, too
  std::vector<Template> templates;
};

/// Reads the files of a directory, or the keys of a GGUF file. A template in a file of its own
/// stands before one in tokenizer_config.json. Throws Error naming file and field where one is
/// malformed.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

/// A file that travels with a tokenizer.
struct TokenizerCompanion {
  std::string name, contents;
};

/// The files of the above kinds in a directory, and tokenizer.json, except `own`.
std::vector<TokenizerCompanion> read_companions(const std::filesystem::path& directory,
                                                std::string_view own);

}  // namespace mixtral
