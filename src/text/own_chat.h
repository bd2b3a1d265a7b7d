#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/chat_template.h"
#include "text/jinja_template.h"
#include "text/tokenizer.h"

namespace mixtral {

/// The chat template that a model brings along (chat_template of tokenizer_config.json,
/// chat_template.jinja), with the tokens of its tokenizer.
class OwnChatTemplate {
 public:
  /// The template of a model's directory, of several the one named "default"; nothing where there
  /// is none. `tokenizer` must outlive it. Throws Error where it cannot be parsed.
  static std::optional<OwnChatTemplate> find(const std::filesystem::path& directory,
                                             const Tokenizer& tokenizer);

  /// The conversation as text, ready for the assistant's reply. Throws Error where the template
  /// refuses it.
  std::string render(std::span<const Message> messages) const;
  /// The same as tokens. Control tokens come from the template alone: those that are spelled out in
  /// the messages are ordinary pieces. BOS stands in front where the template puts it.
  std::vector<int32_t> encode(std::span<const Message> messages) const;

  /// The same of messages and tools as a request gives them: what else they have, such as
  /// tool_calls, is the template's to read. `tools` may be null.
  std::string render(const Json& messages, const Json* tools) const;
  std::vector<int32_t> encode(const Json& messages, const Json* tools) const;

  /// The built-in template that makes the same text of a conversation, spaces beside control tokens
  /// aside; nothing where there is none.
  std::optional<ChatTemplate> builtin() const;
  /// The control tokens that the template spells out, for messages.
  std::vector<std::string> markers() const;
  const std::string& source() const { return source_; }

 private:
  OwnChatTemplate(JinjaTemplate chat, std::string source, const Tokenizer& tokenizer)
      : template_(std::move(chat)), source_(std::move(source)), tokenizer_(&tokenizer) {}
  std::string render(const jinja::Value& messages, bool prompts,
                     const jinja::Value& tools = jinja::Value::none()) const;

  JinjaTemplate template_;
  std::string source_;
  const Tokenizer* tokenizer_;
};

/// The ids that end an answer, each once: those of config.json, those of generation_config.json in
/// the directory (which may be empty), and the tokenizer's EOS (which may be null). Real folders
/// disagree; generation stops at all of them. Throws Error where the file is malformed.
std::vector<int64_t> answer_ends(std::vector<int64_t> config_ids,
                                 const std::filesystem::path& directory,
                                 const Tokenizer* tokenizer);

}  // namespace mixtral
