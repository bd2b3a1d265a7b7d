#include <fmt/format.h>

#include <algorithm>

#include "base/printable.h"
#include "serve/openai_fields.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostMessages = 10'000;

/// Content as text: a text, or parts of type text, a line each.
std::string read_content(const Json& content, const std::string& path) {
  if (content.is_string()) return content.as_string();
  if (!content.is_array()) throw bad_field(path, "expected a text or an array of text parts");
  std::string text;
  for (size_t i = 0; i < content.items().size(); ++i) {
    Fields part(content.items()[i], element(path, i));
    const auto type = part.text("type");
    if (!type) throw bad_field(part.path_of("type"), "is missing; expected text");
    if (*type != "text")
      throw bad_field(part.path_of("type"),
                      fmt::format("this model reads text alone, found '{}'", printable(*type)));
    const Json& value = part.need("text");
    if (!value.is_string()) throw bad_field(part.path_of("text"), "expected a text");
    if (i > 0) text += '\n';
    text += value.as_string();
    part.ignore({"cache_control", "annotations"});
    part.finish();
  }
  return text;
}

ordered_json read_tool_calls(const Json& calls, const std::string& path) {
  if (!calls.is_array()) throw bad_field(path, "expected an array of calls");
  ordered_json result = ordered_json::array();
  for (size_t i = 0; i < calls.items().size(); ++i) {
    Fields call(calls.items()[i], element(path, i));
    const auto id = call.text("id");
    if (!id || id->empty()) throw bad_field(call.path_of("id"), "is missing");
    const std::string type = call.text("type").value_or("function");
    if (type != "function")
      throw bad_field(call.path_of("type"),
                      fmt::format("expected function, found '{}'", printable(type)));
    call.ignore({"index"});
    Fields function(call.need("function"), call.path_of("function"));
    const auto name = function.text("name");
    const auto arguments = function.text("arguments");
    if (!name || name->empty()) throw bad_field(function.path_of("name"), "is missing");
    if (!arguments) throw bad_field(function.path_of("arguments"), "is missing; expected a text");
    function.finish();
    call.finish();
    result.push_back({{"id", *id},
                      {"type", "function"},
                      {"function", {{"name", *name}, {"arguments", *arguments}}}});
  }
  return result;
}

ordered_json read_message(const Json& json, const std::string& path) {
  Fields fields(json, path);
  const auto given = fields.text("role");
  if (!given) throw bad_field(fields.path_of("role"), "is missing");
  const std::string role = *given == "developer" ? "system" : *given;
  if (role != "system" && role != "user" && role != "assistant" && role != "tool")
    throw bad_field(fields.path_of("role"),
                    fmt::format("expected system, developer, user, assistant or tool, found '{}'",
                                printable(role)));
  ordered_json message{{"role", role}};
  const Json* content = fields.take("content");
  const Json* calls = role == "assistant" ? fields.take("tool_calls") : nullptr;
  if (calls != nullptr && calls->is_array() && calls->items().empty()) calls = nullptr;
  if (content != nullptr)
    message["content"] = read_content(*content, fields.path_of("content"));
  else if (calls != nullptr)
    message["content"] = nullptr;
  else
    throw bad_field(fields.path_of("content"), "is missing; expected a text");
  if (calls != nullptr)
    message["tool_calls"] = read_tool_calls(*calls, fields.path_of("tool_calls"));
  if (role == "tool") {
    const auto id = fields.text("tool_call_id");
    if (!id || id->empty())
      throw bad_field(fields.path_of("tool_call_id"),
                      "is missing; it says which call this answers");
    message["tool_call_id"] = *id;
  }
  // Of an assistant's message that comes back as it was sent.
  if (role == "assistant") fields.ignore({"annotations", "index"});
  if (role == "assistant")
    for (const char* nothing : {"refusal", "audio", "function_call"})
      if (fields.take(nothing) != nullptr)
        throw bad_field(fields.path_of(nothing), "is not supported; leave it out");
  fields.ignore({"name", "cache_control"});
  fields.finish();
  return message;
}

std::vector<Tool> read_tools(const Json& json) {
  const Json::Array& items = array_of(json, "tools");
  std::vector<Tool> tools;
  for (size_t i = 0; i < items.size(); ++i) {
    Fields item(items[i], element("tools", i));
    const std::string type = item.text("type").value_or("function");
    if (type != "function")
      throw bad_field(item.path_of("type"),
                      fmt::format("expected function, found '{}'", printable(type)));
    Fields function(item.need("function"), item.path_of("function"));
    Tool tool{.name = function.text("name").value_or("")};
    tool.description = function.text("description").value_or("");
    if (const Json* parameters = function.take("parameters")) {
      if (!parameters->is_object())
        throw bad_field(function.path_of("parameters"), "expected a JSON schema, an object");
      tool.parameters = to_ordered(*parameters);
    }
    (void)function.boolean("strict");
    function.finish();
    item.ignore({"cache_control"});
    item.finish();
    add_tool(tools, std::move(tool), function.path_of("name"));
  }
  return tools;
}

ToolChoice read_tool_choice(const Json& json, const std::vector<Tool>& tools) {
  ToolChoice choice;
  if (json.is_string()) {
    const std::string& word = json.as_string();
    if (word == "none")
      choice.kind = ToolChoice::Kind::none;
    else if (word == "required")
      choice.kind = ToolChoice::Kind::required;
    else if (word != "auto")
      throw bad_field(
          "tool_choice",
          fmt::format("expected none, auto, required or a function, found '{}'", printable(word)));
  } else {
    Fields fields(json, "tool_choice");
    const std::string type = fields.text("type").value_or("");
    if (type != "function")
      throw bad_field("tool_choice.type",
                      fmt::format("expected function, found '{}'", printable(type)));
    Fields function(fields.need("function"), "tool_choice.function");
    choice = {.kind = ToolChoice::Kind::named, .name = function.text("name").value_or("")};
    function.finish();
    fields.finish();
    if (std::ranges::find(tools, choice.name, &Tool::name) == tools.end())
      throw bad_field("tool_choice",
                      fmt::format("there is no tool with the name '{}'", printable(choice.name)));
  }
  if (choice.kind == ToolChoice::Kind::required && tools.empty())
    throw bad_field("tool_choice", "a call is required, but there are no tools");
  return choice;
}

}  // namespace

void read_conversation(Fields& fields, ChatRequest& request) {
  const Json& messages = fields.need("messages");
  if (!messages.is_array()) throw bad_field("messages", "expected an array of messages");
  if (messages.items().empty()) throw bad_field("messages", "is empty; expected a user's turn");
  if (messages.items().size() > kMostMessages)
    throw bad_field("messages", fmt::format("expected at most {} messages, found {}", kMostMessages,
                                            messages.items().size()));
  for (size_t i = 0; i < messages.items().size(); ++i)
    request.messages.push_back(read_message(messages.items()[i], element("messages", i)));
  if (const Json* tools = fields.take("tools")) request.tools = read_tools(*tools);
  if (const Json* choice = fields.take("tool_choice"))
    request.tool_choice = read_tool_choice(*choice, request.tools);
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
}

ChatRequest read_chat_request(Fields& fields) {
  ChatRequest request;
  request.model = fields.text("model").value_or("");
  read_conversation(fields, request);
  AnswerOptions& answer = request.answer = read_answer_options(fields);
  read_response_format(fields, answer.rule);
  const auto old_limit = fields.integer("max_tokens", 1, int64_t{1} << 40);
  const auto limit = fields.integer("max_completion_tokens", 1, int64_t{1} << 40);
  if (limit || old_limit) answer.max_tokens = limit ? limit : old_limit;
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !logprobs)
    throw bad_field("top_logprobs", "is only for answers with logprobs; set that, too");
  if (logprobs) answer.logprobs = top.value_or(0);
  if (const Json* modalities = fields.take("modalities")) {
    const bool text = modalities->is_array() && modalities->items().size() == 1 &&
                      modalities->items().front().is_string() &&
                      modalities->items().front().as_string() == "text";
    if (!text) throw bad_field("modalities", "this model writes text alone; expected [\"text\"]");
  }
  ignore_harmless(fields);
  return request;
}

}  // namespace mixtral::serve
