#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/stream_decoder.h"

namespace mixtral {

/// Receives text as it becomes final: whole characters that no stop text can begin in.
using TextSink = std::function<void(std::string_view)>;

/// The text of one generation, token by token: whole UTF-8 characters only, up to the first stop
/// text, which may span several tokens.
class TextStream {
 public:
  /// `tokenizer` must outlive this; null: there is no text. Each part of the text goes to `sink`
  /// (may be empty) as soon as it is final.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stops, TextSink sink = {});

  /// Adds a token. Returns whether a stop text is complete; the text ends before it. A token that
  /// the tokenizer does not have, as a model's vocabulary may be larger, has no text.
  bool push(int32_t id);
  /// Ends the text: gives out what was held back in case a stop text began there, and U+FFFD for
  /// each byte of an unfinished character. Does nothing after a stop text.
  void finish();

  const std::string& text() const { return text_; }  // given out so far
  /// The stop text that ended the text; empty: none did.
  const std::string& stop_text() const { return stop_text_; }

 private:
  bool add(std::string_view text);
  void release(size_t count);

  int32_t vocabulary_ = 0;
  std::optional<StreamDecoder> decoder_;
  std::vector<std::string> stops_;
  TextSink sink_;
  std::string held_, text_, stop_text_;
  bool stopped_ = false;
};

}  // namespace mixtral
