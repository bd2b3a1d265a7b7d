#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "infer/methods.h"
#include "text/chat_template.h"
#include "text/own_chat.h"

namespace mixtral {

/// A conversation with a model: keeps the turns, and forgets the oldest when they no longer fit.
class Conversation {
 public:
  /// `engine` and `tokenizer` must outlive this. Replies end where `options` says, at the end of
  /// the text, and where the model would go on with the user's next turn.
  Conversation(Engine& engine, const Tokenizer& tokenizer, ChatTemplate chat_template,
               TextOptions options);

  /// The same by the template that the model brings along, which must outlive this.
  Conversation(Engine& engine, const Tokenizer& tokenizer, const OwnChatTemplate& own,
               TextOptions options);

  /// The text that stands before the first turn; empty: none. Throws Error where the template has
  /// no place for one.
  void set_system(std::string text);
  const std::string& system() const { return system_; }
  ChatTemplate chat_template() const { return template_; }
  /// Forgets every turn; the system text stays.
  void reset() { turns_.clear(); }

  /// Adds the user's turn, and the model's reply, which is streamed to `sink` without the space
  /// before it. When this throws, or no reply comes, the turn is taken back. `cancelled` is asked
  /// after each token, and ends the reply where it is.
  GeneratedText say(std::string text, const TextSink& sink,
                    const std::function<bool()>& cancelled = {});

  /// Takes the last reply back and asks for another one, drawn with another seed. Throws Error when
  /// there is no reply.
  GeneratedText regenerate(const TextSink& sink, const std::function<bool()>& cancelled = {});
  /// Goes on from another conversation, system text and turns. Throws Error, with everything as it
  /// was, when the template cannot hold it.
  void load(std::vector<Message> messages);
  /// How replies are drawn, and what ends them: may be changed between turns.
  TextOptions& options() { return options_; }

  /// System text (if any) and turns.
  std::vector<Message> messages() const;
  /// How many of the oldest turns the last reply was given without, because of the context.
  int64_t forgotten() const { return forgotten_; }
  /// Tokens of the conversation with the last reply.
  int64_t tokens() const { return tokens_; }
  /// Tokens of the whole conversation, with the turns that no longer fit.
  int64_t all_tokens() const;

 private:
  std::vector<int32_t> fitting_prompt();
  std::vector<int32_t> encode(const std::vector<Message>& all) const;
  void check(const std::vector<Message>& all, std::string_view source) const;

  Engine& engine_;
  const Tokenizer& tokenizer_;
  ChatTemplate template_ = ChatTemplate::mistral_v1;
  const OwnChatTemplate* own_ = nullptr;  // in its place, where there is one
  TextOptions options_;
  std::string system_;
  std::vector<Message> turns_;
  int64_t forgotten_ = 0, tokens_ = 0;
};

}  // namespace mixtral
