#pragma once

#include "text/tokenizer.h"

namespace mixtral {

/// Decodes tokens one at a time into text that can be shown at once: only ever whole characters.
/// All that push() and flush() return, together, is decode() of the tokens with U+FFFD in place of
/// each byte that is not part of a character.
class StreamDecoder {
 public:
  /// Where the tokens stand: at the start of a text (or of a chat reply), where the space that
  /// encoding adds in front is dropped, or after other text, where every space counts.
  enum class Position { start, middle };
  explicit StreamDecoder(const Tokenizer& tokenizer, Position position = Position::start)
      : tokenizer_(tokenizer), at_start_(position == Position::start) {}

  /// The text that became complete with this token; a split character's bytes wait for the rest.
  /// Throws Error on an id outside the vocabulary.
  std::string push(int32_t id);
  /// What is left at the end, U+FFFD for each byte of an unfinished character.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool at_start_;
  std::string pending_;
};

}  // namespace mixtral
