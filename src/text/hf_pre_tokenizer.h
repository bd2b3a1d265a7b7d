#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace mixtral {

/// A part of a text that is split into tokens by itself.
struct Word {
  std::string text;
  bool first = false;  // whether it stands at the beginning of the whole text
};

/// How a tokenizer.json cuts text into words before the model splits these into tokens.
class HfPreTokenizer {
 public:
  HfPreTokenizer() = default;
  /// Reads the field "pre_tokenizer": null, or one of ByteLevel, Metaspace, Split, Whitespace,
  /// WhitespaceSplit, Digits, Punctuation, CharDelimiterSplit, BertPreTokenizer and a Sequence of
  /// them. Throws Error naming any other.
  explicit HfPreTokenizer(const Json& json) { read(json); }

  /// The words of a text, in order, none of them empty. Throws Error when a pattern takes too long.
  std::vector<Word> split(Word text) const;

  /// What one step does with a word, which it may take.
  using Step = std::function<void(Word&, std::vector<Word>&)>;

 private:
  void read(const Json& json);
  std::vector<Step> steps_;
};

}  // namespace mixtral
