#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/hf_bpe.h"
#include "text/hf_decoder.h"
#include "text/hf_normalizer.h"
#include "text/hf_pre_tokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace mixtral {

/// A tokenizer.json of Hugging Face's tokenizers library with a BPE model. Encodes and decodes
/// valid UTF-8 exactly as that library does; other bytes come back as they are where the vocabulary
/// has bytes.
class HfTokenizer : public Tokenizer {
 public:
  /// From a file's bytes, named `source` in errors, and what stands beside it. Throws Error naming
  /// the field that is malformed, or that asks for what is not supported.
  HfTokenizer(std::string bytes, std::string_view source, const TokenizerConfig& config = {});
  /// From a file. The files that Hugging Face keeps beside it are read and kept.
  static std::unique_ptr<HfTokenizer> load(const std::filesystem::path& file);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<int32_t> encode_prompt(std::string_view text) const override;
  std::vector<int32_t> encode_like_library(std::string_view text) const override;
  std::vector<int32_t> with_special(std::vector<int32_t> ids) const override;
  void decode_next(int32_t id, bool& at_start, std::string& text) const override;
  std::string label(int32_t id) const override;
  bool is_control(int32_t id) const override;
  int32_t find(std::string_view label) const override;
  std::vector<std::string> control_texts() const override;
  int32_t vocab_size() const override { return size_; }
  std::string kind() const override { return "json-bpe"; }
  std::string description() const override;
  /// tokenizer.json byte for byte, and the files that stood beside it.
  void save(const std::filesystem::path& directory) const override;

  const std::vector<AddedToken>& added_tokens() const { return added_; }

 private:
  /// The added tokens to look for in a text, before and after it is normalized.
  struct Finders {
    TokenFinder raw, normalized;
  };

  void add(AddedToken token, std::string_view where);
  void read_added_tokens(const Json& json, const TokenizerConfig& config);
  void read_post_processor(const Json& json);
  void find_special(const TokenizerConfig& config);
  const AddedToken* added(int32_t id) const;
  std::vector<int32_t> encode(std::string_view text, const Finders& finders) const;

  std::string bytes_;
  HfNormalizer normalizer_;
  HfPreTokenizer pre_tokenizer_;
  HfBpe model_;
  HfDecoder decoder_;
  std::vector<AddedToken> added_;
  PieceTable added_contents_;             // of added_, in its order
  std::vector<int32_t> added_of_;         // by id: place in added_, or -1
  Finders all_, words_;                   // of a prompt; of text that a user typed
  std::vector<int32_t> prefix_, suffix_;  // what the post-processor adds
  int32_t size_ = 0;
  std::vector<TokenizerCompanion> companions_;
};

}  // namespace mixtral
