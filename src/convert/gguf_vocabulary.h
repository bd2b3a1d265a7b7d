#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/gguf_writer.h"
#include "model/config.h"
#include "text/sentencepiece_model.h"

namespace mixtral {

/// A tokenizer as GGUF says it.
struct GgufVocabulary {
  /// ggml numbers the kinds of tokens as SentencePiece does.
  using Type = SentencePieceModel::PieceType;

  std::string model;  // "llama" (SentencePiece's BPE), "gpt2" (byte-level BPE), "none"
  std::string pre;    // the name of the pattern that splits texts, of "gpt2"
  std::vector<std::string> tokens;  // by id
  std::vector<float> scores;        // of "llama"
  std::vector<Type> types;
  std::vector<std::string> merges;  // of "gpt2": "LEFT RIGHT", the first one first
  int64_t bos = -1, eos = -1, unk = -1, pad = -1;
  bool add_bos = true, add_eos = false;
  bool space_prefix = true;   // a space is put in front of a text
  std::string chat_template;  // Jinja; empty: none
};

/// The tokenizer in a model's directory, with as many tokens as the model has (those that it lacks
/// are unused). "none" where the directory has none. Throws Error naming what GGUF cannot say of
/// it.
GgufVocabulary gguf_vocabulary(const std::filesystem::path& directory, const ModelConfig& config);

/// Writes it as the keys that begin with "tokenizer.".
void add_vocabulary(const GgufVocabulary& vocabulary, GgufKeys& keys);

}  // namespace mixtral
