#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace mixtral {

/// How a conversation becomes one text. U is what the user says, A the assistant's answer, S the
/// system text; <s> and </s> stand for the BOS and EOS tokens.
enum class ChatTemplate {
  /// `<s> [INST] S\n\nU [/INST] A</s> [INST] U [/INST] …`: Mistral's own, version 1. Each turn is
  /// encoded by itself, so that A begins with a space; S is joined to the first U.
  mistral_v1,
  /// `<s>[INST] U [/INST]A</s>[INST] U [/INST]…`: Hugging Face's template as Mixtral was released
  /// with it. What stands between EOS tokens is encoded as one; there is no S.
  mistral_hf_old,
  /// `<s>S ###user: U ###Assistant: A</s>###user: U …`: the plain form of the seed project's
  /// question-answer texts, also encoded as one between EOS tokens.
  seed,
};

/// "mistral-v1", "mistral-hf-old", "seed".
std::string_view name(ChatTemplate chat_template);
/// The template of that name. Throws UsageError, listing the names, when there is none.
ChatTemplate parse_chat_template(std::string_view name);

struct Message {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
  bool learnt = true;  // of an assistant's turn: whether training takes a loss of it
};

/// Throws Error naming `source` unless the conversation fits the template: at least one turn;
/// system text only first, and only where the template has it; user and assistant in turn, user
/// first.
void check_messages(ChatTemplate chat_template, std::span<const Message> messages,
                    std::string_view source = "messages");

/// A conversation as tokens.
struct ChatTokens {
  std::vector<int32_t> ids;
  /// By token: 1 where a model learns to write it (the text and EOS of an assistant's turn that is
  /// `learnt`), else 0. A token that holds both the end of a prompt and the start of an answer
  /// counts as the answer's.
  std::vector<uint8_t> trained;
};

/// Encodes a conversation: BOS once at the front (where the tokenizer has one), EOS after each of
/// the assistant's turns. One that ends with the user's turn is ready for the assistant's reply to
/// follow, token by token as in training. Content is only ever text: "</s>" or "[INST]" in it is
/// ordinary pieces. Throws Error as check_messages, or when the tokenizer has no EOS.
ChatTokens encode_chat(const Tokenizer& tokenizer, ChatTemplate chat_template,
                       std::span<const Message> messages, std::string_view source = "messages");

/// The conversation as text for people to read, with BOS and EOS written out as <s> and </s>.
std::string render_chat(ChatTemplate chat_template, std::span<const Message> messages,
                        std::string_view source = "messages");

/// Notes in a model directory which template its model was trained with (chat_template_name.json).
void save_chat_template_name(const std::filesystem::path& directory, ChatTemplate chat_template);
/// The template noted there, or nothing. Throws Error when the note cannot be understood.
std::optional<ChatTemplate> find_chat_template_name(const std::filesystem::path& directory);

}  // namespace mixtral
