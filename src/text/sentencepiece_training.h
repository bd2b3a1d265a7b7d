#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mixtral {

/// How to learn a SentencePiece BPE model. The defaults make one like Mixtral's: byte fallback,
/// text otherwise left as it is, a space put in front, digits split, <unk> <s> </s> as tokens 0
/// 1 2.
struct SentencePieceTraining {
  int32_t vocab_size = 4096;           // with the 3 special and 256 byte pieces
  double character_coverage = 0.9995;  // rarer characters are left to byte pieces
  bool split_digits = true;
  int32_t longest_piece = 16;  // characters
  /// Text beyond this is sampled, line by line, down to at most this many bytes.
  uint64_t sample_bytes = uint64_t{128} << 20;
  uint64_t seed = 0;  // of the sampling
};

/// What training saw and made.
struct SentencePieceTrained {
  std::string model;                              // the bytes of a tokenizer.model
  uint64_t text_bytes = 0, text_lines = 0;        // found in the sources
  uint64_t sampled_bytes = 0, sampled_lines = 0;  // trained on
};

/// Learns a model from text. A source is a .jsonl file of records ({"text"}, {"messages"},
/// {"prompt", "completion"} or {"prompt", "chosen", "rejected"}), any other file as plain text, or
/// a directory: its train.jsonl if there is one, else all its .jsonl and .txt files by name. The
/// same sources and settings give the same bytes. Throws Error naming file and line for a bad
/// record, and when the text cannot fill the vocabulary.
SentencePieceTrained train_sentencepiece(const std::vector<std::filesystem::path>& sources,
                                         const SentencePieceTraining& settings);

}  // namespace mixtral
