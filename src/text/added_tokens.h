#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "text/piece_table.h"

namespace mixtral {

/// A token that is found in a text as a whole, before the text is split into pieces: control tokens
/// such as "<|im_start|>" and words that were added to a vocabulary. The fields are those of
/// Hugging Face's AddedToken.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // left out where text is decoded for people
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // only where no word character stands beside it
  bool normalized = false;   // looked for in the normalized text
};

/// Whether text that a user typed must not become this token: one that is special, or is written
/// the way control tokens are, within <...> or [...], as fine-tunes add "<|im_start|>" without
/// marking it special.
bool is_control_like(const AddedToken& token);

/// Reads a token that is an object, as in tokenizer.json. Throws Error naming the field.
AddedToken read_added_token(const Json& json);

/// Part of a text: a token, or text between tokens, whose id is -1.
struct TextPart2;

struct Segment {
  int32_t id = -1;
  std::string_view text;
};

/// Finds added tokens in texts: of tokens that begin at the same place the longest, from left to
/// right, as the tokenizers library does.
class TokenFinder {
 public:
  /// Looks for `content` and finds `token`.
  void add(std::string_view content, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  /// The whole of `text` in order; parts without bytes are left out.
  std::vector<Segment> split(std::string_view text) const;

 private:
  ByteTrie trie_;  // by content: the place in tokens_
  std::vector<AddedToken> tokens_;
};

}  // namespace mixtral
