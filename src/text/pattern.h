#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mixtral {

/// A regular expression from a tokenizer's file, in the syntax of Oniguruma (Ruby), which Hugging
/// Face's tokenizers library uses. PCRE2 matches it, without its compiler and with bounds on steps
/// and memory, so that a hostile pattern cannot run for long.
class Pattern {
 public:
  /// Throws Error naming `source` and the pattern where it is malformed, longer than 10,000 bytes,
  /// or uses what is not supported (back references, look-behind of variable length, recursion).
  Pattern(std::string_view expression, std::string_view source);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  /// Finds matches of one text from left to right. Bytes that are not UTF-8 are in no match.
  class Matches {
   public:
    Matches(const Pattern& pattern, std::string_view text);
    /// The next match into `begin` and `end`; false after the last. An empty match right after
    /// another match is left out. Throws Error when the pattern needs too many steps.
    bool next(size_t& begin, size_t& end);

   private:
    struct State;
    const Pattern& pattern_;
    std::string_view text_;
    std::shared_ptr<State> state_;
    size_t at_ = 0, last_end_ = std::string_view::npos;
  };

 private:
  struct Compiled;
  std::string expression_;
  std::unique_ptr<Compiled> compiled_;
};

/// The same expression in PCRE2's syntax. Throws Error naming `source` for what the two syntaxes
/// mean differently and cannot be said in the other.
std::string pcre_syntax(std::string_view expression, std::string_view source);

}  // namespace mixtral
