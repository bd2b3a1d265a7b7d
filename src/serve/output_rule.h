#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "constrain/grammar.h"
#include "constrain/matcher.h"
#include "constrain/vocabulary.h"
#include "serve/chat_request.h"
#include "serve/tool_format.h"
#include "text/tokenizer.h"

namespace mixtral::serve {

/// A filter for one answer each.
using FilterFactory = std::function<std::unique_ptr<TokenFilter>()>;

/// Compiles the rules of requests to filters, and keeps the last ones: clients ask with one schema
/// again and again, and what its matcher has computed helps the next answer. For many threads.
class OutputRules {
 public:
  /// `tokenizer` is read here alone. `format` is how the model calls tools.
  OutputRules(const Tokenizer& tokenizer, ToolFormat format);

  /// Keeps a rule; empty for no rule. Throws ApiError 400 naming its field where that cannot be.
  FilterFactory filter(const OutputRule& rule);
  /// Keeps to calls of a request's tools as its tool_choice says. Throws ApiError 400.
  FilterFactory tool_filter(const ChatRequest& request);

 private:
  using Compile = std::function<constrain::Matcher()>;
  struct Kept {
    std::string key;
    std::shared_ptr<const constrain::Matcher> matcher;
  };
  FilterFactory find(std::string key, const Compile& compile);

  ToolFormat format_;
  bool hidden_marker_ = false;  // calls begin with a control token, which is no text
  // Of rules; of tools, in which the marker of calls may come, too.
  std::shared_ptr<const constrain::Vocabulary> vocabulary_, tool_vocabulary_;
  std::mutex mutex_;
  std::list<Kept> kept_;  // the last used first
};

}  // namespace mixtral::serve
