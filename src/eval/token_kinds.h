#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace mixtral {

/// What a token is in its text; each is one of these.
enum class TokenKind : uint8_t {
  word_start,    // the token that a word begins with
  continuation,  // what follows within the word
  name,          // any token of a word that is capitalised inside a sentence; the word "I" is none
  digit,
  punctuation,  // and other signs
  space,        // nothing but blanks
  newline,      // nothing but blanks and at least one line break
  byte,         // a piece of a character, or a byte that is no text
  control,      // BOS, EOS and the like, and ids that the tokenizer does not know
};
inline constexpr size_t kTokenKinds = 9;

/// "word start", "newline": for people.
std::string_view kind_name(TokenKind kind);

/// The kind of each token of one sequence. A token is judged by its first character that is not
/// blank, and by the text around it: a sentence begins where the text or a line does and after
/// . ! or ?; letters, digits inside words and apostrophes between letters make up words.
std::vector<TokenKind> classify_tokens(const Tokenizer& tokenizer, std::span<const int32_t> ids);

}  // namespace mixtral
