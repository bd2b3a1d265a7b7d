#include "serve/tool_format.h"

#include <fmt/format.h>

#include <utility>

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

bool offers_tools(const ChatRequest& request) {
  return !request.tools.empty() && request.tool_choice.kind != ToolChoice::Kind::none;
}

ordered_json described(const Tool& tool) {
  ordered_json function{{"name", tool.name}};
  if (!tool.description.empty()) function["description"] = tool.description;
  function["parameters"] =
      tool.parameters.is_null() ? ordered_json{{"type", "object"}} : tool.parameters;
  return {{"type", "function"}, {"function", std::move(function)}};
}

std::string explanation(const ChatRequest& request) {
  std::string text = "You can use these tools, given as JSON schemas:\n";
  for (const Tool& tool : request.tools) text += described(tool).dump() + "\n";
  return text +
         "To use one, answer with nothing but\n"
         "<tool_call>{\"name\": \"its name\", \"arguments\": {its arguments}}</tool_call>\n"
         "The result comes between <tool_response> and </tool_response>.";
}

std::string text_of(const ordered_json& message) {
  const auto content = message.find("content");
  return content != message.end() && content->is_string() ? content->get<std::string>() : "";
}

// Arguments come as text. Templates write them as JSON, and so want the value.
ordered_json arguments_of(const ordered_json& call) {
  const auto& arguments = call.at("function").at("arguments");
  if (!arguments.is_string()) return arguments;
  auto value = ordered_json::parse(arguments.get_ref<const std::string&>(), nullptr, false);
  return value.is_object() ? value : arguments;
}

std::string written_call(const ordered_json& call) {
  const auto& function = call.at("function");
  const auto& arguments = function.at("arguments");
  return "<tool_call>{\"name\": " + function.at("name").dump() + ", \"arguments\": " +
         (arguments.is_string() ? arguments.get<std::string>() : arguments.dump()) +
         "}</tool_call>";
}

ordered_json as_plain_turn(const ordered_json& message) {
  if (message.at("role") == "tool")
    return {{"role", "user"},
            {"content", "<tool_response>" + text_of(message) + "</tool_response>"}};
  if (!message.contains("tool_calls")) return message;
  std::string text = text_of(message);
  for (const auto& call : message.at("tool_calls")) text += written_call(call);
  return {{"role", "assistant"}, {"content", std::move(text)}};
}

}  // namespace

ToolFormat tool_format(std::string_view source) {
  if (source.find("tools") == std::string_view::npos) return ToolFormat::generic;
  if (source.find("[TOOL_CALLS]") != std::string_view::npos) return ToolFormat::mistral;
  if (source.find("<tool_call>") != std::string_view::npos) return ToolFormat::hermes;
  return ToolFormat::generic;
}

std::string_view tool_marker(ToolFormat format) {
  return format == ToolFormat::mistral ? "[TOOL_CALLS]" : "<tool_call>";
}

ordered_json messages_with_tools(ToolFormat format, const ChatRequest& request) {
  ordered_json messages = ordered_json::array();
  for (const auto& message : request.messages) {
    if (format == ToolFormat::generic) {
      messages.push_back(as_plain_turn(message));
      continue;
    }
    messages.push_back(message);
    if (!message.contains("tool_calls")) continue;
    for (auto& call : messages.back()["tool_calls"])
      call["function"]["arguments"] = arguments_of(call);
  }
  if (format != ToolFormat::generic || !offers_tools(request)) return messages;
  // At the front, where templates without a system turn take it, too.
  for (auto& message : messages) {
    const bool is_system = message.at("role") == "system";
    if (!is_system && message.at("role") != "user") continue;
    const std::string text = text_of(message), tools = explanation(request);
    message["content"] =
        is_system ? fmt::format("{}\n\n{}", text, tools) : fmt::format("{}\n\n{}", tools, text);
    break;
  }
  return messages;
}

ordered_json tools_for_template(const ChatRequest& request) {
  if (!offers_tools(request)) return nullptr;
  ordered_json tools = ordered_json::array();
  for (const Tool& tool : request.tools) tools.push_back(described(tool));
  return tools;
}

}  // namespace mixtral::serve
