#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "text/pattern.h"

namespace mixtral {

/// Bytes begin to end of a text.
struct TextRange {
  size_t begin = 0, end = 0;
};

/// What tokenizer.json splits or replaces by: a literal text or a regular expression.
class TextPattern {
 public:
  /// Reads {"String": ...} or {"Regex": ...}. Throws Error naming what is wrong.
  explicit TextPattern(const Json& json);
  explicit TextPattern(std::string_view expression, std::string_view source);

  /// The matches from left to right. Throws Error as Pattern::Matches::next.
  std::vector<TextRange> find(std::string_view text) const;
  /// The literal text; empty for an expression.
  const std::string& literal() const { return literal_; }

 private:
  std::string literal_;
  std::shared_ptr<const Pattern> pattern_;
};

/// `text` with `content` in the place of every match.
std::string replace_matches(std::string_view text, const TextPattern& pattern,
                            std::string_view content);

}  // namespace mixtral
