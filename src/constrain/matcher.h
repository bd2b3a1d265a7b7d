#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "constrain/grammar.h"
#include "constrain/vocabulary.h"

namespace mixtral::constrain {

class Automaton;

/// Follows a text token by token, and says which tokens may come next. A copy is cheap and shares
/// what was computed so far: keep one matcher a grammar, and copy it for each answer. Copies may be
/// used in different threads, each in one at a time.
class Matcher {
 public:
  Matcher(const Grammar& grammar, std::shared_ptr<const Vocabulary> vocabulary);

  /// Clears the bits of `mask` (bit v mod 32 of word v / 32 is token v's) of all tokens that may
  /// not come next. A stop token may come where the text may end. Returns whether any bit is left.
  /// There may be none where the vocabulary has no token for a character, and after the end where
  /// there are no stop tokens. Throws Error where the grammar is so ambiguous that the step takes
  /// too long; the matcher can then not be used any more.
  bool allow(std::span<uint32_t> mask);

  /// The token came. Returns whether it fits; where not, nothing changes. A stop token fits where
  /// the text may end, and nothing fits behind it. Throws Error as allow().
  bool accept(int32_t token);
  /// The same for text that is given as bytes.
  bool accept_text(std::string_view text);

  /// Whether the text may end here.
  bool can_end() const;
  /// Whether it has to: nothing can follow.
  bool must_end() const;

 private:
  void move_on();

  std::shared_ptr<Automaton> automaton_;
  uint32_t state_ = 0;
  bool ended_ = false;
};

}  // namespace mixtral::constrain
