#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "text/piece_table.h"
#include "text/sentencepiece_model.h"

namespace mixtral {

/// Collects the tokens of a text. Characters that no piece covers become byte pieces, or, where the
/// model has none, one unknown token for each run of them.
class TokenSink {
 public:
  TokenSink(const SentencePieceModel& model, std::vector<int32_t>& ids)
      : model_(model), ids_(ids) {}
  void known(int32_t id) {
    ids_.push_back(id);
    after_unknown_ = false;
  }
  void unknown(std::string_view bytes) {
    if (model_.byte_fallback) {
      for (const char c : bytes) ids_.push_back(model_.byte_ids[static_cast<unsigned char>(c)]);
    } else if (!after_unknown_) {
      ids_.push_back(model_.unk_id);
    }
    after_unknown_ = true;
  }

 private:
  const SentencePieceModel& model_;
  std::vector<int32_t>& ids_;
  bool after_unknown_ = false;
};

/// Splits normalised text into a model's pieces. Implementations never throw on any bytes, may be
/// used from several threads, and never produce a control token.
class PieceEncoder {
 public:
  virtual ~PieceEncoder() = default;
  virtual void encode(std::string_view normalized, TokenSink& sink) const = 0;
};

/// The encoder for the model's kind. Both it and `user_defined` must outlive the encoder.
std::unique_ptr<PieceEncoder> make_piece_encoder(const SentencePieceModel& model,
                                                 const ByteTrie& user_defined);

/// Bytes to take as one character: a valid UTF-8 character's, or 1.
size_t character_bytes(std::string_view text);

}  // namespace mixtral
