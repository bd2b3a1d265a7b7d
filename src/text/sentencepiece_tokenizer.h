#pragma once

#include "text/normalizer.h"
#include "text/piece_encoder.h"
#include "text/sentencepiece_model.h"
#include "text/tokenizer.h"

namespace mixtral {

/// A SentencePiece model (BPE or unigram), encoding and decoding exactly as the SentencePiece
/// library does with valid UTF-8. Other bytes, which that library turns into U+FFFD, become byte
/// pieces here and come back unchanged.
class SentencePieceTokenizer : public Tokenizer {
 public:
  /// From a model file's bytes, named `source` in errors. Throws Error as
  /// parse_sentencepiece_model.
  SentencePieceTokenizer(std::string bytes, std::string_view source);
  /// From a file. The files that Hugging Face keeps beside it (tokenizer_config.json and the like)
  /// are kept too, so that save() hands them on.
  static std::unique_ptr<SentencePieceTokenizer> load(const std::filesystem::path& file);

  std::vector<int32_t> encode(std::string_view text) const override;
  void decode_next(int32_t id, bool& at_start, std::string& text) const override;
  std::string label(int32_t id) const override;
  bool is_control(int32_t id) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(model_.pieces.size()); }
  std::string kind() const override;
  std::string description() const override;
  /// tokenizer.model byte for byte, and a tokenizer_config.json that makes Hugging Face's
  /// AutoTokenizer load it.
  void save(const std::filesystem::path& directory) const override;

  const SentencePieceModel& model() const { return model_; }

 private:
  struct Companion {
    std::string name, contents;
  };

  std::string bytes_;
  SentencePieceModel model_;
  ByteTrie user_defined_;
  std::vector<std::string> surfaces_;  // by id: what decoding appends in mid-text
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PieceEncoder> encoder_;
  std::vector<Companion> companions_;
};

}  // namespace mixtral
