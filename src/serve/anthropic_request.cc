#include "serve/anthropic_request.h"

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

constexpr size_t kMostStops = 64;
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

/// A text block's text.
std::string text_block(Fields& block) {
  std::string text = block.need_text("text");
  block.ignore({"cache_control"});
  if (const Json* citations = block.take("citations");
      citations != nullptr && !(citations->is_array() && citations->items().empty()))
    throw bad_field(block.path_of("citations"), "citations are not supported; leave them out");
  block.finish();
  return text;
}

[[noreturn]] void refuse_block(const std::string& path, const std::string& type) {
  throw bad_field(path, fmt::format("blocks of type '{}' are not supported here; send text, "
                                    "tool_use (of the assistant) or tool_result (of the user)",
                                    printable(type)));
}

/// Text, or blocks of text, as one text: each block begins a line.
std::string joined_text(const Json& value, const std::string& path) {
  if (value.is_string()) return value.as_string();
  if (!value.is_array()) throw bad_field(path, "expected a text or an array of text blocks");
  std::string text;
  for (size_t i = 0; i < value.items().size(); ++i) {
    Fields block(value.items()[i], element(path, i));
    if (const std::string type = block.need_text("type"); type != "text")
      refuse_block(block.path_of("type"), type);
    if (i > 0) text += '\n';
    text += text_block(block);
  }
  return text;
}

/// One message becomes one, or several where it brings the results of tools.
class MessageReader {
 public:
  explicit MessageReader(ordered_json& messages) : messages_(messages) {}

  void read(const Json& message, const std::string& path) {
    Fields fields(message, path);
    role_ = fields.need_text("role");
    if (role_ != "user" && role_ != "assistant")
      throw bad_field(fields.path_of("role"),
                      fmt::format("expected user or assistant, found '{}'", printable(role_)));
    const Json& content = fields.need("content");
    const std::string content_path = fields.path_of("content");
    fields.finish();
    text_.reset();
    calls_ = ordered_json::array();
    if (content.is_string()) {
      text_ = content.as_string();
    } else {
      const Json::Array& blocks = array_of(content, content_path);
      for (size_t i = 0; i < blocks.size(); ++i) read_block(blocks[i], element(content_path, i));
      if (blocks.empty()) throw bad_field(content_path, "is empty; give at least one block");
    }
    flush();
  }

 private:
  void read_block(const Json& value, const std::string& path) {
    Fields block(value, path);
    const std::string type = block.need_text("type");
    if (type == "text") {
      text_ = (text_ ? *text_ + '\n' : "") + text_block(block);
    } else if (type == "tool_use" && role_ == "assistant") {
      const std::string id = block.need_text("id"), name = block.need_text("name");
      const Json& input = block.need("input");
      if (!input.is_object()) throw bad_field(block.path_of("input"), "expected an object");
      block.ignore({"cache_control", "caller"});
      block.finish();
      calls_.push_back({{"id", id},
                        {"type", "function"},
                        {"function", {{"name", name}, {"arguments", to_line(to_ordered(input))}}}});
    } else if (type == "tool_result" && role_ == "user") {
      flush();  // what was said before it
      const std::string id = block.need_text("tool_use_id");
      const Json* content = block.take("content");
      std::string text = content ? joined_text(*content, block.path_of("content")) : "";
      if (block.boolean("is_error").value_or(false)) text = "Error: " + text;
      block.ignore({"cache_control"});
      block.finish();
      messages_.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", text}});
    } else {
      refuse_block(block.path_of("type"), type);
    }
  }

  /// Adds what was read of the message so far.
  void flush() {
    if (!text_ && calls_.empty()) return;
    ordered_json message = {{"role", role_}};
    message["content"] = text_ ? ordered_json(*text_) : ordered_json();
    if (!calls_.empty()) message["tool_calls"] = calls_;
    messages_.push_back(std::move(message));
    text_.reset();
    calls_ = ordered_json::array();
  }

  ordered_json& messages_;
  std::string role_;
  std::optional<std::string> text_;
  ordered_json calls_;
};

void read_tools(Fields& fields, ChatRequest& request) {
  const Json* tools = fields.take("tools");
  if (tools == nullptr) return;
  const std::string path = fields.path_of("tools");
  const Json::Array& items = array_of(*tools, path);
  for (size_t i = 0; i < items.size(); ++i) {
    Fields tool(items[i], element(path, i));
    if (const auto type = tool.text("type"); type && *type != "custom")
      throw bad_field(tool.path_of("type"),
                      fmt::format("expected custom, found '{}': only the request's own tools can "
                                  "be called",
                                  printable(*type)));
    Tool added;
    added.name = tool.need_text("name");
    added.description = tool.text("description").value_or("");
    const Json& schema = tool.need("input_schema");
    if (!schema.is_object()) throw bad_field(tool.path_of("input_schema"), "expected an object");
    added.parameters = to_ordered(schema);
    tool.boolean("strict");  // calls always keep to the schema
    tool.ignore({"cache_control"});
    tool.finish();
    add_tool(request.tools, std::move(added), tool.path_of("name"));
  }
}

void read_tool_choice(Fields& fields, ChatRequest& request) {
  const Json* value = fields.take("tool_choice");
  if (value == nullptr) return;
  Fields choice(*value, fields.path_of("tool_choice"));
  const std::string type = choice.need_text("type");
  if (type == "auto") {
    request.tool_choice.kind = ToolChoice::Kind::automatic;
  } else if (type == "any") {
    request.tool_choice.kind = ToolChoice::Kind::required;
  } else if (type == "tool") {
    request.tool_choice = {ToolChoice::Kind::named, choice.need_text("name")};
  } else if (type == "none") {
    request.tool_choice.kind = ToolChoice::Kind::none;
  } else {
    throw bad_field(choice.path_of("type"), fmt::format("expected auto, any, tool or none, found "
                                                        "'{}'",
                                                        printable(type)));
  }
  request.parallel_tool_calls = !choice.boolean("disable_parallel_tool_use").value_or(false);
  choice.finish();
  const bool calls = type == "any" || type == "tool";
  if (calls && request.tools.empty())
    throw bad_field(choice.path_of("type"), "a tool is to be called, but tools is empty");
  if (type == "tool" && std::ranges::none_of(request.tools, [&](const Tool& tool) {
        return tool.name == request.tool_choice.name;
      }))
    throw bad_field(choice.path_of("name"),
                    fmt::format("no tool has the name '{}'", printable(request.tool_choice.name)));
}

/// {"format": {"type": "json_schema", "schema": …}}
void read_output_config(Fields& fields, ChatRequest& request) {
  const Json* value = fields.take("output_config");
  if (value == nullptr) return;
  Fields config(*value, fields.path_of("output_config"));
  if (const Json* inner = config.take("format")) {
    Fields format(*inner, config.path_of("format"));
    if (const std::string type = format.need_text("type"); type != "json_schema")
      throw bad_field(format.path_of("type"),
                      fmt::format("expected json_schema, found '{}'", printable(type)));
    request.answer.rule = {.kind = OutputRule::Kind::json_schema,
                           .text = to_line(to_ordered(format.need("schema"))),
                           .field = format.path_of("schema")};
    format.finish();
  }
  config.finish();
}

/// What messages and count_tokens share.
void read_common_fields(Fields& fields, ChatRequest& request) {
  request.model = fields.need_text("model");
  if (const Json* system = fields.take("system")) {
    const std::string text = joined_text(*system, "system");
    if (!text.empty()) request.messages.push_back({{"role", "system"}, {"content", text}});
  }
  const Json::Array& messages = array_of(fields.need("messages"), "messages");
  if (messages.empty()) throw bad_field("messages", "is empty; give at least one message");
  MessageReader reader(request.messages);
  for (size_t i = 0; i < messages.size(); ++i) reader.read(messages[i], element("messages", i));
  read_tools(fields, request);
  read_tool_choice(fields, request);
  read_output_config(fields, request);
  if (const Json* value = fields.take("thinking")) {
    Fields thinking(*value, "thinking");
    if (thinking.need_text("type") != "disabled")
      throw bad_field("thinking", "thinking is not supported; leave it out, or disable it");
    thinking.finish();
  }
  fields.ignore({"cache_control"});
}

void read_stops(Fields& fields, std::vector<std::string>& stops) {
  const Json* value = fields.take("stop_sequences");
  if (value == nullptr) return;
  const Json::Array& items = array_of(*value, "stop_sequences");
  if (items.size() > kMostStops)
    throw bad_field("stop_sequences",
                    fmt::format("expected at most {} texts, found {}", kMostStops, items.size()));
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string() || items[i].as_string().empty())
      throw bad_field(element("stop_sequences", i), "expected a text that is not empty");
    stops.push_back(items[i].as_string());
  }
}

}  // namespace

MessagesRequest read_messages_request(const Json& body) {
  MessagesRequest request;
  Fields fields(body);
  AnswerOptions& answer = request.chat.answer;
  fields.need("max_tokens");
  answer.max_tokens = fields.integer("max_tokens", 1, kMostTokens);
  read_common_fields(fields, request.chat);
  read_stops(fields, answer.stop);
  answer.temperature = static_cast<float>(fields.number("temperature", 0, 2).value_or(1));
  answer.top_p = static_cast<float>(fields.number("top_p", 0, 1).value_or(1));
  answer.top_k = static_cast<int32_t>(fields.integer("top_k", 0, kMostTokens).value_or(0));
  request.stream = fields.boolean("stream").value_or(false);
  if (const Json* metadata = fields.take("metadata")) {
    Fields inner(*metadata, "metadata");
    inner.text("user_id");
    inner.finish();
  }
  fields.ignore({"service_tier"});
  fields.finish();
  return request;
}

ChatRequest read_count_request(const Json& body) {
  ChatRequest request;
  Fields fields(body);
  read_common_fields(fields, request);
  fields.finish();
  return request;
}

}  // namespace mixtral::serve
