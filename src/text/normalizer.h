#pragma once

#include <string>
#include <string_view>

#include "text/charsmap.h"
#include "text/piece_table.h"
#include "text/sentencepiece_model.h"

namespace mixtral {

/// How SentencePiece writes a space inside pieces: U+2581.
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

/// What a model does to text before it is split: character map, spaces, dummy prefix. The steps and
/// their order are SentencePiece's (normalizer.cc of 0.1.97), with one difference: a byte that is
/// not part of a UTF-8 character stays as it is instead of becoming U+FFFD, so that it can be
/// encoded as a byte piece and come back.
class Normalizer {
 public:
  /// `user_defined` holds the user-defined pieces, which the character map leaves alone.
  Normalizer(const SentencePieceModel& model, const ByteTrie& user_defined);

  /// Where a text stands: the dummy prefix (and suffix) is put at a `whole` text, and not at one
  /// that is the `rest` of another.
  enum class Part { whole, rest };
  std::string normalize(std::string_view text, Part part = Part::whole) const;

 private:
  std::string normalize_plainly(std::string_view text, Part part) const;

  Charsmap charsmap_;
  ByteTrie user_defined_;
  std::string_view space_;  // what a space becomes
  bool dummy_prefix_, trim_, suffix_;
};

}  // namespace mixtral
