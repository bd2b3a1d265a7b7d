#pragma once

#include <vector>

#include "text/piece_encoder.h"

namespace mixtral {

/// The split of a text with the highest sum of piece scores (Kudo, "Subword regularization",
/// ACL 2018), found by Viterbi's algorithm from left to right, O(n × longest piece). Scores, ties
/// and rounding are those of SentencePiece 0.1.97's optimised encoder.
class UnigramEncoder : public PieceEncoder {
 public:
  explicit UnigramEncoder(const SentencePieceModel& model);  // which must outlive this
  void encode(std::string_view normalized, TokenSink& sink) const override;

 private:
  const SentencePieceModel& model_;
  ByteTrie pieces_;
  float unknown_score_, highest_score_;
};

}  // namespace mixtral
