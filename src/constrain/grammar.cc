#include "constrain/grammar.h"

#include "constrain/matcher.h"

namespace mixtral::constrain {

bool Grammar::accepts(std::string_view text) const {
  static const auto no_tokens = std::make_shared<const Vocabulary>(std::vector<std::string>());
  Matcher matcher(*this, no_tokens);
  return matcher.accept_text(text) && matcher.can_end();
}

}  // namespace mixtral::constrain
