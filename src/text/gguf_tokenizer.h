#pragma once

#include <memory>

#include "io/gguf.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace mixtral {

/// The tokenizer of a GGUF file (the keys tokenizer.ggml.*; llama.cpp, src/llama-vocab.cpp), or
/// null where it has none: the model "llama", which is SentencePiece BPE with scores and types, or
/// "gpt2", byte-level BPE with merges and a pre-tokenizer of a known name. Throws Error naming the
/// key where something is malformed or not known.
std::unique_ptr<Tokenizer> read_gguf_tokenizer(const GgufHeader& header);

/// The name that llama.cpp gives to a pre-tokenizer that splits texts by this pattern alone;
/// nothing where it has none. Such a word that is a token is that token (`ignores_merges`), or may
/// not be.
std::optional<std::string_view> gguf_pre_tokenizer(std::string_view pattern, bool ignores_merges);

/// The special tokens' texts, and the chat templates (tokenizer.chat_template).
TokenizerConfig read_gguf_tokenizer_config(const GgufHeader& header);

}  // namespace mixtral
