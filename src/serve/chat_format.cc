#include "serve/chat_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "io/json.h"
#include "serve/fields.h"
#include "serve/tool_format.h"
#include "serve/tool_reader.h"
#include "text/tokenizer_config.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

std::string text_of(const ordered_json& message) {
  const auto content = message.find("content");
  return content != message.end() && content->is_string() ? content->get<std::string>() : "";
}

/// Messages whose neighbours have different roles, and with the system's text in the user's first
/// turn: what every template takes. Only for messages that are text.
ordered_json plain_turns(const ordered_json& messages, bool with_system) {
  ordered_json turns = ordered_json::array();
  std::string system;
  for (const auto& message : messages) {
    const auto role = message.at("role").get<std::string>();
    std::string text = text_of(message);
    if (role == "system" && !with_system) {
      system += text + "\n\n";
      continue;
    }
    if (role == "user") text.insert(0, std::exchange(system, {}));
    if (!turns.empty() && turns.back().at("role") == role)
      turns.back()["content"] = text_of(turns.back()) + "\n\n" + text;
    else
      turns.push_back({{"role", role}, {"content", text}});
  }
  return turns;
}

bool is_text(const ordered_json& messages) {
  return std::ranges::none_of(messages, [](const ordered_json& message) {
    return message.at("role") == "tool" || message.contains("tool_calls");
  });
}

std::vector<Message> as_turns(const ordered_json& messages) {
  std::vector<Message> turns;
  for (const auto& message : messages)
    turns.push_back({message.at("role").get<std::string>(), text_of(message)});
  return turns;
}

/// The text of the template that a model brings along.
std::string template_text(const ModelSource& source) {
  for (const TokenizerConfig::Template& item : read_tokenizer_config(source.directory()).templates)
    if (item.name == "default") return item.text;
  return "";
}

bool offers_tools(const ChatRequest& request) {
  return !request.tools.empty() && request.tool_choice.kind != ToolChoice::Kind::none;
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
  if (own_) tools_ = tool_format(template_text(source));
  rules_ = std::make_unique<OutputRules>(tokenizer_, tools_);
}

std::vector<int32_t> ChatFormat::encode(const ordered_json& messages,
                                        const ordered_json& tools) const {
  if (!own_) return encode_chat(tokenizer_, *builtin_, as_turns(messages)).ids;
  if (tools.is_null() || tools_ == ToolFormat::generic)
    return own_->encode(as_json(messages), nullptr);
  const Json given = as_json(tools);
  return own_->encode(as_json(messages), &given);
}

std::vector<int32_t> ChatFormat::encode(const ChatRequest& request) const {
  std::string beginning;
  ChatRequest begun = request;
  begun.messages = without_beginning(request.messages, beginning);
  const ordered_json messages = messages_with_tools(tools_, begun);
  const ordered_json tools = tools_for_template(begun);
  // As it is; with turns joined where the template refuses two in a row; without a system turn.
  std::vector<ordered_json> forms{messages};
  if (is_text(messages))
    forms = {messages, plain_turns(messages, true), plain_turns(messages, false)};
  std::vector<int32_t> ids;
  std::string refused;
  for (const ordered_json& form : forms) {
    try {
      ids = encode(form, tools);
      break;
    } catch (const Error& error) {
      if (refused.empty()) refused = error.what();
    }
  }
  if (ids.empty()) throw ApiError(400, fmt::format("messages: {}", refused), "messages");
  if (!beginning.empty()) {
    const std::vector<int32_t> more = tokenizer_.encode(beginning);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

ChatPlan ChatFormat::plan(const ChatRequest& request) const {
  const OutputRule& rule = request.answer.rule;
  ChatPlan plan{.prompt = encode(request)};
  if (!offers_tools(request)) {
    plan.filter = rules_->filter(rule);
    return plan;
  }
  if (rule.kind != OutputRule::Kind::none)
    throw bad_field(rule.field,
                    "an answer that may call tools keeps their schemas and no other "
                    "rule; leave out one of the two");
  plan.filter = rules_->tool_filter(request);
  plan.reader = [format = tools_] { return std::make_unique<ToolReader>(format); };
  return plan;
}

std::string ChatFormat::prompt_text(const ChatRequest& request) const {
  const std::vector<int32_t> ids = encode(request);
  std::string text;
  for (const int32_t id : ids) text += spelled(tokenizer_, id);
  if (completion_tokens(tokenizer_, text) == ids) return text;
  // SentencePiece puts a space in front of a text, which is not to be there twice.
  const auto begin =
      static_cast<size_t>(!ids.empty() && ids.front() == tokenizer_.bos_id() ? 1 : 0);
  std::string shorter;
  if (begin == 1) shorter = tokenizer_.label(ids.front());
  shorter += tokenizer_.decode(std::span(ids).subspan(begin));
  if (completion_tokens(tokenizer_, shorter) == ids) return shorter;
  return text;
}

}  // namespace mixtral::serve
