#include "infer/conversation.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/advice.h"

namespace mixtral {
namespace {

/// Passes text on without the space at its beginning.
class LeadingSpace {
 public:
  explicit LeadingSpace(const TextSink& sink) : sink_(sink) {}
  void push(std::string_view text) {
    if (!begun_) text.remove_prefix(std::min(text.find_first_not_of(" \n"), text.size()));
    if (text.empty()) return;
    begun_ = true;
    if (sink_) sink_(text);
  }

 private:
  const TextSink& sink_;
  bool begun_ = false;
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \n") - begin + 1);
}

}  // namespace

Conversation::Conversation(Engine& engine, const Tokenizer& tokenizer, ChatTemplate chat_template,
                           TextOptions options)
    : engine_(engine),
      tokenizer_(tokenizer),
      template_(chat_template),
      options_(std::move(options)) {
  options_.stop.emplace_back(chat_template == ChatTemplate::seed ? "###user:" : "[INST]");
}

Conversation::Conversation(Engine& engine, const Tokenizer& tokenizer, const OwnChatTemplate& own,
                           TextOptions options)
    : engine_(engine), tokenizer_(tokenizer), own_(&own), options_(std::move(options)) {}

std::vector<int32_t> Conversation::encode(const std::vector<Message>& all) const {
  if (own_ != nullptr) return own_->encode(all);
  return encode_chat(tokenizer_, template_, all, "the conversation").ids;
}

void Conversation::check(const std::vector<Message>& all, std::string_view source) const {
  if (own_ != nullptr)
    (void)own_->render(all);  // the template itself says what it refuses
  else
    check_messages(template_, all, source);
}

void Conversation::set_system(std::string text) {
  if (!text.empty()) {
    const std::vector<Message> probe{{"system", text}, {"user", "?"}};
    check(probe, "the system text");
  }
  system_ = std::move(text);
}

std::vector<Message> Conversation::messages() const {
  std::vector<Message> all;
  if (!system_.empty()) all.push_back({"system", system_});
  all.insert(all.end(), turns_.begin(), turns_.end());
  return all;
}

std::vector<int32_t> Conversation::fitting_prompt() {
  // Room for the reply, but never more than half of the context.
  const int64_t room = std::min(options_.tokens.max_tokens, engine_.context() / 2);
  std::vector<Message> all = messages();
  const auto first = static_cast<std::ptrdiff_t>(system_.empty() ? 0 : 1);
  for (forgotten_ = 0;; forgotten_ += 2) {
    std::vector<int32_t> ids = encode(all);
    if (static_cast<int64_t>(ids.size()) + room <= engine_.context()) return ids;
    if (static_cast<std::ptrdiff_t>(all.size()) - first < 3) {
      if (static_cast<int64_t>(ids.size()) < engine_.context()) return ids;
      throw AdvisedError(
          fmt::format("this turn has {} tokens, more than the context of {}; shorten it, or raise "
                      "‹context› where the model has more positions",
                      ids.size(), engine_.context()));
    }
    all.erase(all.begin() + first, all.begin() + first + 2);
  }
}

GeneratedText Conversation::say(std::string text, const TextSink& sink,
                                const std::function<bool()>& cancelled) {
  const size_t before = turns_.size();
  turns_.push_back({"user", std::move(text)});
  try {
    const std::vector<int32_t> prompt = fitting_prompt();
    LeadingSpace filter(sink);
    TextOptions options = options_;
    options.cancelled = cancelled;
    GeneratedText reply = generate(engine_, &tokenizer_, prompt, options,
                                   [&](std::string_view piece) { filter.push(piece); });
    reply.text = trimmed(reply.text);
    tokens_ = static_cast<int64_t>(prompt.size() + reply.tokens.size());
    if (reply.text.empty())
      turns_.resize(before);
    else
      turns_.push_back({"assistant", reply.text});
    return reply;
  } catch (...) {
    turns_.resize(before);
    throw;
  }
}

GeneratedText Conversation::regenerate(const TextSink& sink,
                                       const std::function<bool()>& cancelled) {
  if (turns_.empty()) throw Error("there is no reply to take back");
  const std::vector<Message> before = turns_;
  turns_.resize(turns_.size() - 2);
  ++options_.tokens.sampling.seed;
  try {
    GeneratedText reply = say(before[before.size() - 2].content, sink, cancelled);
    if (reply.text.empty()) turns_ = before;
    return reply;
  } catch (...) {
    turns_ = before;
    throw;
  }
}

void Conversation::load(std::vector<Message> messages) {
  check(messages, "the conversation");
  if (messages.back().role == "user")
    throw Error("the conversation ends with the user's turn; expected the reply to it, too");
  std::string system;
  if (messages.front().role == "system") {
    system = messages.front().content;
    messages.erase(messages.begin());
  }
  system_ = std::move(system);
  turns_ = std::move(messages);
}

int64_t Conversation::all_tokens() const {
  if (turns_.empty()) return 0;
  return static_cast<int64_t>(encode(messages()).size());
}

}  // namespace mixtral
