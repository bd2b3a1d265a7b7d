#include "text/own_chat.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "io/json.h"
#include "text/spelled_controls.h"
#include "text/tokenizer_config.h"

namespace mixtral {
namespace {

using jinja::Value;

Value message_value(const Message& message, std::string content) {
  Value value = Value::dict();
  value.set(Value::of("role"), Value::of(message.role));
  value.set(Value::of("content"), Value::of(std::move(content)));
  return value;
}

/// Without spaces and line ends, which the forms of one template differ in.
std::string without_spaces(std::string text) {
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
  return text;
}

void replace_all(std::string& text, const std::string& part, const std::string& by) {
  for (size_t at = 0; !part.empty() && (at = text.find(part, at)) != std::string::npos;
       at += by.size())
    text.replace(at, part.size(), by);
}

/// The value with a mark in each of its texts that spells out a control token.
Value plain_value(const Json& json, const std::vector<std::string>& controls) {
  if (json.is_string()) return Value::of(mark_as_plain(json.as_string(), controls));
  if (json.is_array()) {
    std::vector<Value> items;
    for (const Json& item : json.items()) items.push_back(plain_value(item, controls));
    return Value::list(std::move(items));
  }
  if (!json.is_object()) return Value::from_json(json);
  Value object = Value::dict();
  for (const auto& [key, item] : json.members())
    object.set(Value::of(mark_as_plain(key, controls)), plain_value(item, controls));
  return object;
}

}  // namespace

std::optional<OwnChatTemplate> OwnChatTemplate::find(const std::filesystem::path& directory,
                                                     const Tokenizer& tokenizer) {
  const TokenizerConfig config = read_tokenizer_config(directory);
  for (const TokenizerConfig::Template& item : config.templates)
    if (item.name == "default")
      return OwnChatTemplate(JinjaTemplate(item.text, item.source), item.source, tokenizer);
  return std::nullopt;
}

std::string OwnChatTemplate::render(const Value& messages, bool prompts, const Value& tools) const {
  Value variables = Value::dict();
  const auto token = [&](const char* key, int32_t id) {
    if (id >= 0) variables.set(Value::of(key), Value::of(tokenizer_->label(id)));
  };
  token("bos_token", tokenizer_->bos_id());
  token("eos_token", tokenizer_->eos_id());
  token("unk_token", tokenizer_->unk_id());
  token("pad_token", tokenizer_->pad_id());
  variables.set(Value::of("tools"), tools);
  variables.set(Value::of("documents"), Value::none());
  variables.set(Value::of("add_generation_prompt"), Value::of(prompts));
  variables.set(Value::of("messages"), template_messages(messages, source_));
  return template_.render(variables).text;
}

std::string OwnChatTemplate::render(std::span<const Message> messages) const {
  std::vector<Value> values;
  for (const Message& message : messages) values.push_back(message_value(message, message.content));
  return render(Value::list(std::move(values)), true);
}

std::vector<int32_t> OwnChatTemplate::encode(std::span<const Message> messages) const {
  const std::vector<std::string> controls = tokenizer_->control_texts();
  // Of an answer, templates look into markers such as "</think>", which are not special.
  std::vector<std::string> special;
  for (const std::string& control : controls)
    if (const int32_t id = tokenizer_->find(control); id >= 0 && tokenizer_->is_control(id))
      special.push_back(control);
  std::vector<Value> values;
  for (const Message& message : messages)
    values.push_back(message_value(
        message, mark_as_plain(message.content, message.role == "assistant" ? special : controls)));
  return tokenizer_->encode_prompt(render(Value::list(std::move(values)), true));
}

std::string OwnChatTemplate::render(const Json& messages, const Json* tools) const {
  return render(Value::from_json(messages), true,
                tools != nullptr ? Value::from_json(*tools) : Value::none());
}

std::vector<int32_t> OwnChatTemplate::encode(const Json& messages, const Json* tools) const {
  const std::vector<std::string> controls = tokenizer_->control_texts();
  return tokenizer_->encode_prompt(
      render(plain_value(messages, controls), true,
             tools != nullptr ? plain_value(*tools, controls) : Value::none()));
}

std::optional<ChatTemplate> OwnChatTemplate::builtin() const {
  const std::vector<Message> probe = {
      {"user", "QQ1"}, {"assistant", "AA1"}, {"user", "QQ2"}, {"assistant", "AA2"}};
  std::string own;
  try {
    std::vector<Value> values;
    values.reserve(probe.size());
    for (const Message& message : probe) values.push_back(message_value(message, message.content));
    own = render(Value::list(std::move(values)), false);
  } catch (const Error&) {
    return std::nullopt;
  }
  const auto written = [&](int32_t id, const char* as) {
    if (id >= 0) replace_all(own, tokenizer_->label(id), as);
  };
  written(tokenizer_->bos_id(), "<s>");
  written(tokenizer_->eos_id(), "</s>");
  for (const ChatTemplate chat : {ChatTemplate::mistral_hf_old, ChatTemplate::mistral_v1})
    if (own == render_chat(chat, probe)) return chat;
  if (without_spaces(own) == without_spaces(render_chat(ChatTemplate::mistral_v1, probe)))
    return ChatTemplate::mistral_v1;
  return std::nullopt;
}

std::vector<std::string> OwnChatTemplate::markers() const {
  return SpelledControls(*tokenizer_).find(template_.text());
}

std::vector<int64_t> answer_ends(std::vector<int64_t> config_ids,
                                 const std::filesystem::path& directory,
                                 const Tokenizer* tokenizer) {
  std::vector<int64_t> ids = std::move(config_ids);
  const auto add = [&](int64_t id) {
    if (id >= 0 && std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
  };
  const std::filesystem::path file = directory / "generation_config.json";
  std::error_code ignored;
  if (!directory.empty() && std::filesystem::is_regular_file(file, ignored)) {
    const Json json = Json::load(file, {.bytes = 1 << 20, .depth = 16});
    if (const Json* eos = json.find("eos_token_id"); eos != nullptr && eos->is_array()) {
      for (const Json& id : eos->items()) add(id.as_int());
    } else if (eos != nullptr && !eos->is_null()) {
      add(eos->as_int());
    }
  }
  if (tokenizer != nullptr) add(tokenizer->eos_id());
  return ids;
}

}  // namespace mixtral
