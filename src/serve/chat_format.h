#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "open/model_source.h"
#include "serve/chat_request.h"
#include "serve/output_rule.h"

namespace mixtral::serve {

/// Turns the text of an answer into what the client is told: content, and calls of tools.
class ReplyReader {
 public:
  virtual ~ReplyReader() = default;
  virtual ChatDelta push(std::string_view text) = 0;
  virtual ChatDelta finish() = 0;
  /// Whether the answer calls a tool, so far.
  virtual bool calls_tools() const = 0;
};

/// A conversation, ready for the engine.
struct ChatPlan {
  std::vector<int32_t> prompt;
  /// Empty: everything is allowed.
  FilterFactory filter;
  /// Empty: all text is content.
  std::function<std::unique_ptr<ReplyReader>()> reader;
};

/// How conversations with one model are written: by the template that it was trained with, the one
/// that it brings along, or Mistral's. For many threads.
class ChatFormat {
 public:
  /// The source's tokenizer must outlive this.
  explicit ChatFormat(const ModelSource& source);

  /// The prompt of a conversation, and how to read the answer. Throws ApiError 400 for messages
  /// that the template refuses, and rules that cannot be kept.
  ChatPlan plan(const ChatRequest& request) const;
  /// The prompt as text which, sent to a completion, makes the same tokens where text can.
  std::string prompt_text(const ChatRequest& request) const;
  /// A filter that keeps a rule; empty for no rule. Throws ApiError 400 naming the rule's field.
  FilterFactory filter(const OutputRule& rule) const { return rules_->filter(rule); }

 private:
  std::vector<int32_t> encode(const nlohmann::ordered_json& messages,
                              const nlohmann::ordered_json& tools) const;
  std::vector<int32_t> encode(const ChatRequest& request) const;

  const Tokenizer& tokenizer_;
  std::optional<ChatTemplate> builtin_;
  std::optional<OwnChatTemplate> own_;
  ToolFormat tools_ = ToolFormat::generic;
  std::unique_ptr<OutputRules> rules_;
};

/// The tokens of a completion's prompt: control tokens that are spelled out count, and BOS stands
/// in front once where the tokenizer has one.
std::vector<int32_t> completion_tokens(const Tokenizer& tokenizer, std::string_view text);

}  // namespace mixtral::serve
