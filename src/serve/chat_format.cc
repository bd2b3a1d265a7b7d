#include "serve/chat_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "io/json.h"
#include "serve/fields.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

std::string text_of(const ordered_json& message) {
  const auto content = message.find("content");
  return content != message.end() && content->is_string() ? content->get<std::string>() : "";
}

/// Turns for a built-in template: neighbours of one role are one turn, since user and assistant
/// have to take turns there.
std::vector<Message> turns_of(const ordered_json& messages) {
  std::vector<Message> turns;
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto role = messages[i].at("role").get<std::string>();
    if (role == "tool" || messages[i].contains("tool_calls"))
      throw bad_field(element("messages", i), "this model's template has no place for tools");
    std::string text = text_of(messages[i]);
    if (!turns.empty() && turns.back().role == role)
      turns.back().content += "\n\n" + text;
    else
      turns.push_back({role, std::move(text)});
  }
  return turns;
}

/// Without an assistant's last message, which the answer goes on with.
ordered_json without_beginning(const ordered_json& messages, std::string& beginning) {
  ordered_json rest = messages;
  if (rest.size() > 1 && rest.back().at("role") == "assistant" &&
      !rest.back().contains("tool_calls")) {
    beginning = text_of(rest.back());
    rest.erase(rest.size() - 1);
  }
  return rest;
}

Json as_json(const ordered_json& value) { return Json::parse(value.dump(), "messages"); }

/// What a token is in a text that encode_prompt() reads.
std::string spelled(const Tokenizer& tokenizer, int32_t id) {
  return tokenizer.is_control(id) ? tokenizer.label(id) : tokenizer.piece(id);
}

}  // namespace

std::vector<int32_t> completion_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.encode_prompt(text);
  const int32_t bos = tokenizer.bos_id();
  if (bos >= 0 && (ids.empty() || ids.front() != bos)) ids.insert(ids.begin(), bos);
  return ids;
}

ChatFormat::ChatFormat(const ModelSource& source)
    : tokenizer_(*source.require_tokenizer()), builtin_(source.chat_template()) {
  if (!builtin_) own_ = source.own_chat_template();
  if (!builtin_ && !own_) builtin_ = ChatTemplate::mistral_v1;
}

std::vector<int32_t> ChatFormat::encode(const ChatRequest& request) const {
  std::string beginning;
  const ordered_json messages = without_beginning(request.messages, beginning);
  std::vector<int32_t> ids;
  try {
    if (own_)
      ids = own_->encode(as_json(messages), nullptr);
    else
      ids = encode_chat(tokenizer_, *builtin_, turns_of(messages)).ids;
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    throw ApiError(400, fmt::format("messages: {}", error.what()), "messages");
  }
  if (!beginning.empty()) {
    const std::vector<int32_t> more = tokenizer_.encode(beginning);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

ChatPlan ChatFormat::plan(const ChatRequest& request) const {
  if (!request.tools.empty() && request.tool_choice.kind != ToolChoice::Kind::none)
    throw bad_field("tools", "this model's template has no place for tools");
  return {.prompt = encode(request), .filter = make_filter(request.answer.rule, tokenizer_)};
}

std::string ChatFormat::prompt_text(const ChatRequest& request) const {
  const std::vector<int32_t> ids = encode(request);
  std::string text;
  for (const int32_t id : ids) text += spelled(tokenizer_, id);
  if (completion_tokens(tokenizer_, text) == ids) return text;
  // SentencePiece puts a space in front of a text, which is not to be there twice.
  std::string shorter;
  const auto begin =
      static_cast<size_t>(!ids.empty() && ids.front() == tokenizer_.bos_id() ? 1 : 0);
  if (begin == 1) shorter = tokenizer_.label(ids.front());
  shorter += tokenizer_.decode(std::span(ids).subspan(begin));
  if (completion_tokens(tokenizer_, shorter) == ids) return shorter;
  if (own_) {
    std::string beginning;
    const ordered_json messages = without_beginning(request.messages, beginning);
    std::string rendered = own_->render(as_json(messages), nullptr) + beginning;
    if (completion_tokens(tokenizer_, rendered) == ids) return rendered;
  }
  return text;
}

}  // namespace mixtral::serve
