#include "serve/responses_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/printable.h"
#include "serve/api_error.h"
#include "serve/fields.h"
#include "serve/openai_fields.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

/// Refuses a field whose value asks for something that is not there.
void refuse(Fields& fields, std::string_view name, const std::string& reason) {
  if (fields.take(name) != nullptr) throw bad_field(fields.path_of(name), reason);
}

void refuse_unless_empty(Fields& fields, std::string_view name, const std::string& reason) {
  const Json* value = fields.take(name);
  if (value != nullptr && !(value->is_array() && value->items().empty()))
    throw bad_field(fields.path_of(name), reason);
}

/// Text, or parts of text, as one text: each part begins a line.
std::string joined_text(const Json& value, const std::string& path) {
  if (value.is_string()) return value.as_string();
  if (!value.is_array()) throw bad_field(path, "expected a text or an array of text parts");
  std::string text;
  for (size_t i = 0; i < value.items().size(); ++i) {
    Fields part(value.items()[i], element(path, i));
    const std::string type = part.need_text("type");
    if (type != "input_text" && type != "output_text" && type != "text")
      throw bad_field(
          part.path_of("type"),
          fmt::format("parts of type '{}' are not supported; send text", printable(type)));
    if (i > 0) text += '\n';
    text += part.need_text("text");
    // What an earlier answer says of its own text.
    refuse_unless_empty(part, "annotations", "annotations are not supported; leave them out");
    part.ignore({"logprobs"});
    part.finish();
  }
  return text;
}

void read_message(Fields& item, ordered_json& messages) {
  const std::string role = item.need_text("role");
  if (role != "user" && role != "assistant" && role != "system" && role != "developer")
    throw bad_field(
        item.path_of("role"),
        fmt::format("expected user, assistant, system or developer, found '{}'", printable(role)));
  const std::string text = joined_text(item.need("content"), item.path_of("content"));
  messages.push_back({{"role", role == "developer" ? "system" : role}, {"content", text}});
}

/// Calls that follow each other are one turn of the assistant.
void read_call(Fields& item, ordered_json& messages) {
  const std::string id = item.need_text("call_id"), name = item.need_text("name");
  const std::string arguments = item.need_text("arguments");
  if (!ordered_json::parse(arguments, nullptr, false).is_object())
    throw bad_field(item.path_of("arguments"), "expected the text of a JSON object");
  if (messages.empty() || messages.back()["role"] != "assistant")
    messages.push_back({{"role", "assistant"}, {"content", nullptr}});
  messages.back()["tool_calls"].push_back(
      {{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}});
}

void read_input(const Json& input, ordered_json& messages) {
  if (input.is_string()) {
    messages.push_back({{"role", "user"}, {"content", input.as_string()}});
    return;
  }
  if (!input.is_array()) throw bad_field("input", "expected a text or an array of items");
  if (input.items().empty()) throw bad_field("input", "is empty; give at least one item");
  for (size_t i = 0; i < input.items().size(); ++i) {
    Fields item(input.items()[i], element("input", i));
    const std::string type = item.text("type").value_or("message");
    if (type == "message") {
      read_message(item, messages);
    } else if (type == "function_call") {
      read_call(item, messages);
    } else if (type == "function_call_output") {
      const std::string id = item.need_text("call_id");
      const std::string text = joined_text(item.need("output"), item.path_of("output"));
      messages.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", text}});
    } else {
      throw bad_field(item.path_of("type"),
                      fmt::format("items of type '{}' are not supported; send message, "
                                  "function_call or function_call_output",
                                  printable(type)));
    }
    item.ignore({"id", "status"});
    item.finish();
  }
}

void read_tools(Fields& fields, ChatRequest& request) {
  const Json* tools = fields.take("tools");
  if (tools == nullptr) return;
  const Json::Array& items = array_of(*tools, "tools");
  for (size_t i = 0; i < items.size(); ++i) {
    Fields tool(items[i], element("tools", i));
    if (const std::string type = tool.need_text("type"); type != "function")
      throw bad_field(tool.path_of("type"),
                      fmt::format("expected function, found '{}': only the request's own functions "
                                  "can be called",
                                  printable(type)));
    Tool added;
    added.name = tool.need_text("name");
    added.description = tool.text("description").value_or("");
    if (const Json* schema = tool.take("parameters")) {
      if (!schema->is_object()) throw bad_field(tool.path_of("parameters"), "expected an object");
      added.parameters = to_ordered(*schema);
    }
    tool.boolean("strict");  // calls always keep to the schema
    tool.finish();
    add_tool(request.tools, std::move(added), tool.path_of("name"));
  }
}

void read_tool_choice(Fields& fields, ChatRequest& request) {
  const Json* value = fields.take("tool_choice");
  if (value == nullptr) return;
  ToolChoice& choice = request.tool_choice;
  if (value->is_object()) {
    Fields named(*value, "tool_choice");
    if (const std::string type = named.need_text("type"); type != "function")
      throw bad_field("tool_choice.type",
                      fmt::format("expected function, found '{}'", printable(type)));
    choice = {ToolChoice::Kind::named, named.need_text("name")};
    named.finish();
    if (std::ranges::none_of(request.tools,
                             [&](const Tool& tool) { return tool.name == choice.name; }))
      throw bad_field("tool_choice.name",
                      fmt::format("no tool has the name '{}'", printable(choice.name)));
    return;
  }
  const std::string kind = *fields.text("tool_choice");
  if (kind == "none")
    choice.kind = ToolChoice::Kind::none;
  else if (kind == "auto")
    choice.kind = ToolChoice::Kind::automatic;
  else if (kind == "required")
    choice.kind = ToolChoice::Kind::required;
  else
    throw bad_field("tool_choice", fmt::format("expected none, auto, required or a function, found "
                                               "'{}'",
                                               printable(kind)));
  if (kind == "required" && request.tools.empty())
    throw bad_field("tool_choice", "a tool is to be called, but tools is empty");
}

void read_text_format(Fields& fields, ChatRequest& request) {
  const Json* value = fields.take("text");
  if (value == nullptr) return;
  Fields text(*value, "text");
  if (const Json* inner = text.take("format")) {
    Fields format(*inner, "text.format");
    const std::string type = format.need_text("type");
    OutputRule& rule = request.answer.rule;
    if (type == "json_schema") {
      format.need_text("name");
      format.text("description");
      format.boolean("strict");  // answers always keep to the schema
      rule = {.kind = OutputRule::Kind::json_schema,
              .text = to_line(to_ordered(format.need("schema"))),
              .field = "text.format.schema"};
    } else if (type == "json_object") {
      rule = {.kind = OutputRule::Kind::json_object, .field = "text.format"};
    } else if (type != "text") {
      throw bad_field(
          "text.format.type",
          fmt::format("expected text, json_schema or json_object, found '{}'", printable(type)));
    }
    format.finish();
  }
  text.finish();
}

/// What the server does not have, each with what to do instead.
void refuse_what_is_not_there(Fields& fields) {
  refuse(fields, "previous_response_id",
         "answers are not kept here; send the whole conversation as input");
  refuse(fields, "conversation", "conversations are not kept here; send the whole one as input");
  refuse(fields, "prompt", "prompts are not kept here; send instructions and input");
  refuse(fields, "top_logprobs",
         "log probabilities are not in these answers; /v1/chat/completions has them");
  refuse_unless_empty(fields, "include", "nothing more can be included; leave it out");
  if (fields.boolean("background").value_or(false))
    throw bad_field("background", "answers are not made in the background; leave it out");
  if (const auto truncation = fields.text("truncation"); truncation && *truncation != "disabled")
    throw bad_field("truncation", "expected disabled: conversations are not cut here");
  if (const Json* value = fields.take("reasoning")) {
    Fields reasoning(*value, "reasoning");
    if (const auto effort = reasoning.text("effort"); effort && *effort != "none")
      throw bad_field("reasoning.effort", "reasoning is not supported; leave it out");
    refuse(reasoning, "summary", "reasoning is not supported; leave it out");
    refuse(reasoning, "generate_summary", "reasoning is not supported; leave it out");
    reasoning.finish();
  }
}

ordered_json or_null(const Json* value) { return value ? to_ordered(*value) : ordered_json(); }

}  // namespace

ResponsesRequest read_responses_request(const Json& body) {
  ResponsesRequest request;
  Fields fields(body);
  ChatRequest& chat = request.chat;
  chat.model = fields.need_text("model");
  const auto instructions = fields.text("instructions");
  if (instructions && !instructions->empty())
    chat.messages.push_back({{"role", "system"}, {"content", *instructions}});
  read_input(fields.need("input"), chat.messages);
  refuse_what_is_not_there(fields);
  read_tools(fields, chat);
  read_tool_choice(fields, chat);
  chat.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
  read_text_format(fields, chat);
  AnswerOptions& answer = chat.answer;
  answer.temperature = static_cast<float>(fields.number("temperature", 0, 2).value_or(1));
  answer.top_p = static_cast<float>(fields.number("top_p", 0, 1).value_or(1));
  answer.max_tokens = fields.integer("max_output_tokens", 1, kMostTokens);
  request.stream = fields.boolean("stream").value_or(false);
  if (const Json* value = fields.take("stream_options")) {
    Fields options(*value, "stream_options");
    options.boolean("include_obfuscation");
    options.finish();
  }
  const Json* metadata = fields.take("metadata");
  if (metadata != nullptr && !metadata->is_object())
    throw bad_field("metadata", "expected an object");
  fields.boolean("store");  // nothing is kept, either way
  fields.ignore(
      {"user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"});
  fields.finish();

  const auto member = [&](std::string_view name) { return or_null(fields.take(name)); };
  request.echoed = {{"instructions", member("instructions")},
                    {"max_output_tokens", member("max_output_tokens")},
                    {"metadata", metadata ? to_ordered(*metadata) : ordered_json::object()},
                    {"parallel_tool_calls", chat.parallel_tool_calls},
                    {"previous_response_id", nullptr},
                    {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
                    {"store", false},
                    {"temperature", fields.number("temperature", 0, 2).value_or(1)},
                    {"text", {{"format", {{"type", "text"}}}}},
                    {"tool_choice", "auto"},
                    {"tools", ordered_json::array()},
                    {"top_p", fields.number("top_p", 0, 1).value_or(1)},
                    {"truncation", "disabled"},
                    {"user", member("user")}};
  for (const std::string_view name : {"tool_choice", "tools"})
    if (const Json* value = fields.take(name))
      request.echoed[std::string(name)] = to_ordered(*value);
  if (const Json* text = fields.take("text"); text && text->find("format"))
    request.echoed["text"] = to_ordered(*text);
  return request;
}

}  // namespace mixtral::serve
