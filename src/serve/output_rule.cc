#include "serve/chat_format.h"

namespace mixtral::serve {

std::function<std::unique_ptr<TokenFilter>()> make_filter(const OutputRule& rule,
                                                          const Tokenizer&) {
  if (rule.kind == OutputRule::Kind::none) return {};
  throw bad_field(rule.field, "this server cannot constrain answers; leave it out");
}

}  // namespace mixtral::serve
