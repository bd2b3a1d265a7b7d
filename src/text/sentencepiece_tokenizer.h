#pragma once

#include "text/added_tokens.h"
#include "text/normalizer.h"
#include "text/piece_encoder.h"
#include "text/sentencepiece_model.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace mixtral {

/// A SentencePiece model (BPE or unigram), encoding and decoding exactly as the SentencePiece
/// library does with valid UTF-8. Other bytes, which that library turns into U+FFFD, become byte
/// pieces here and come back unchanged. Tokens that Hugging Face's files add to it are tokens like
/// the others, behind the model's pieces or in the place of some.
class SentencePieceTokenizer : public Tokenizer {
 public:
  /// From a model file's bytes, named `source` in errors. Throws Error as
  /// parse_sentencepiece_model.
  SentencePieceTokenizer(std::string bytes, std::string_view source,
                         const TokenizerConfig& config = {});
  /// From a file. The files that Hugging Face keeps beside it (tokenizer_config.json and the like)
  /// are kept too, so that save() hands them on.
  static std::unique_ptr<SentencePieceTokenizer> load(const std::filesystem::path& file);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<int32_t> encode_prompt(std::string_view text) const override;
  /// Finds the added tokens that are not pieces of the model.
  std::vector<int32_t> encode_like_library(std::string_view text) const override;
  std::vector<int32_t> with_special(std::vector<int32_t> ids) const override;
  void decode_next(int32_t id, bool& at_start, std::string& text) const override;
  std::string label(int32_t id) const override;
  bool is_control(int32_t id) const override;
  int32_t find(std::string_view label) const override;
  std::vector<std::string> control_texts() const override;
  int32_t vocab_size() const override { return size_; }
  std::string kind() const override;
  std::string description() const override;
  /// tokenizer.model byte for byte, and a tokenizer_config.json that makes Hugging Face's
  /// AutoTokenizer load it.
  void save(const std::filesystem::path& directory) const override;

  const SentencePieceModel& model() const { return model_; }

 private:
  void add_tokens(const TokenizerConfig& config);
  const AddedToken* added(int32_t id) const;
  bool is_piece(int32_t id) const { return id < static_cast<int32_t>(model_.pieces.size()); }
  std::vector<int32_t> encode(std::string_view text, const TokenFinder& finder) const;

  std::string bytes_;
  SentencePieceModel model_;
  ByteTrie user_defined_;
  std::vector<std::string> surfaces_;  // by piece: what decoding appends in mid-text
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PieceEncoder> encoder_;
  std::vector<AddedToken> added_;      // by id
  PieceTable labels_;                  // the pieces, in order of their ids
  TokenFinder all_, library_, words_;  // of a prompt; of encode_like_library(); of typed text
  Normalizer::Part after_token_ = Normalizer::Part::whole;
  bool adds_bos_ = true, adds_eos_ = false;
  int32_t size_ = 0;
  std::vector<TokenizerCompanion> companions_;
};

}  // namespace mixtral
