#include "serve/anthropic.h"

#include <optional>

#include "serve/anthropic_request.h"
#include "serve/fields.h"
#include "serve/model_route.h"
#include "serve/openai_fields.h"
#include "serve/openai_json.h"
#include "serve/server_sent_events.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

std::string_view error_type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

ordered_json error_object(const ApiError& error) {
  return {{"type", "error"},
          {"error", {{"type", error_type_of(error.status())}, {"message", error.what()}}}};
}

/// What ended an answer, as stop_reason and stop_sequence.
ordered_json stop_of(const ChatFinish& finish) {
  ordered_json stop = {{"stop_reason", "end_turn"}, {"stop_sequence", nullptr}};
  if (finish.reason == ChatFinish::Reason::tool_calls) {
    stop["stop_reason"] = "tool_use";
  } else if (finish.reason == ChatFinish::Reason::length) {
    stop["stop_reason"] = "max_tokens";
  } else if (!finish.stop_text.empty()) {
    stop["stop_reason"] = "stop_sequence";
    stop["stop_sequence"] = finish.stop_text;
  }
  return stop;
}

/// Input tokens are all of the prompt. Those of the protocol's own cache, which it counts apart and
/// a client has to ask for, are none.
ordered_json usage_of(int64_t input, int64_t output) {
  return {{"input_tokens", input},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", 0},
          {"output_tokens", output}};
}

ordered_json message_of(const std::string& model, ordered_json content, ordered_json usage) {
  return {{"id", "msg_" + random_id()}, {"type", "message"},
          {"role", "assistant"},        {"model", model},
          {"content", content},         {"stop_reason", nullptr},
          {"stop_sequence", nullptr},   {"usage", usage}};
}

/// A message that is sent when it is complete.
class WholeMessage : public ChatAnswer {
 public:
  WholeMessage(std::shared_ptr<Reply> reply, std::string model)
      : ChatAnswer(std::move(reply)), model_(std::move(model)) {}

 private:
  void begin(int64_t prompt_tokens) override { prompt_tokens_ = prompt_tokens; }

  void add(const ChatDelta& part) override {
    text_ += part.content;
    for (const ChatDelta::ToolCall& call : part.tool_calls) {
      if (calls_.size() <= call.index) calls_.resize(call.index + 1);
      ChatDelta::ToolCall& whole = calls_[call.index];
      whole.id += call.id;
      whole.name += call.name;
      whole.arguments += call.arguments;
    }
  }

  void finish(const ChatFinish& finish) override {
    ordered_json content = ordered_json::array();
    if (!text_.empty() || calls_.empty()) content.push_back({{"type", "text"}, {"text", text_}});
    for (const ChatDelta::ToolCall& call : calls_) {
      ordered_json input = ordered_json::parse(call.arguments, nullptr, false);
      if (!input.is_object()) input = ordered_json::object();  // the call was cut off
      content.push_back(
          {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", input}});
    }
    ordered_json message = message_of(model_, content, usage_of(prompt_tokens_, finish.tokens));
    message.update(stop_of(finish));
    reply().send(json_response(message));
  }

  void fail(const ApiError& error) override { reply().send(anthropic_error(error)); }

  std::string model_, text_;
  int64_t prompt_tokens_ = 0;
  std::vector<ChatDelta::ToolCall> calls_;
};

/// A message that is sent as it comes, as a stream of events.
class MessageStream : public ChatAnswer {
 public:
  MessageStream(std::shared_ptr<Reply> reply, std::string model)
      : ChatAnswer(reply), model_(std::move(model)), events_(std::move(reply)) {}

 private:
  void send(std::string_view type, const ordered_json& fields) {
    ordered_json event = {{"type", type}};
    event.update(fields);
    events_.send(to_line(event), type);
  }

  void open(ordered_json block) {
    close();
    kind_ = block["type"];
    send("content_block_start", {{"index", blocks_++}, {"content_block", std::move(block)}});
  }

  void close() {
    if (kind_.empty()) return;
    send("content_block_stop", {{"index", blocks_ - 1}});
    kind_.clear();
  }

  void grow(ordered_json delta) {
    send("content_block_delta", {{"index", blocks_ - 1}, {"delta", std::move(delta)}});
  }

  void begin(int64_t prompt_tokens) override {
    prompt_tokens_ = prompt_tokens;
    send("message_start",
         {{"message", message_of(model_, ordered_json::array(), usage_of(prompt_tokens, 0))}});
    send("ping", ordered_json::object());
  }

  void add(const ChatDelta& part) override {
    if (!part.content.empty()) {
      if (kind_ != "text") open({{"type", "text"}, {"text", ""}});
      grow({{"type", "text_delta"}, {"text", part.content}});
    }
    for (const ChatDelta::ToolCall& call : part.tool_calls) {
      if (!call.id.empty())
        open({{"type", "tool_use"},
              {"id", call.id},
              {"name", call.name},
              {"input", ordered_json::object()}});
      if (!call.arguments.empty())
        grow({{"type", "input_json_delta"}, {"partial_json", call.arguments}});
    }
  }

  void finish(const ChatFinish& finish) override {
    if (blocks_ == 0) open({{"type", "text"}, {"text", ""}});
    close();
    send("message_delta",
         {{"delta", stop_of(finish)}, {"usage", usage_of(prompt_tokens_, finish.tokens)}});
    send("message_stop", ordered_json::object());
    events_.end();
  }

  void fail(const ApiError& error) override {
    events_.send(to_line(error_object(error)), "error");
    events_.end();
  }

  std::string model_;
  EventStream events_;
  std::string kind_;  // of the block that is open; empty: none
  int64_t blocks_ = 0, prompt_tokens_ = 0;
};

}  // namespace

std::shared_ptr<ChatAnswer> make_message(std::shared_ptr<Reply> reply, std::string model,
                                         bool stream) {
  if (stream) return std::make_shared<MessageStream>(std::move(reply), std::move(model));
  return std::make_shared<WholeMessage>(std::move(reply), std::move(model));
}

HttpResponse anthropic_error(const ApiError& error) {
  HttpResponse response{.status = error.status(), .headers = error.headers};
  response.headers.emplace_back("Content-Type", "application/json");
  response.body = to_line(error_object(error));
  return response;
}

namespace {

void answer_messages(Service& service, const Json& body, const HttpHead& head,
                     const std::shared_ptr<Reply>& reply) {
  MessagesRequest request = read_messages_request(body);
  request.chat.client = client_of(head);
  const std::string model = service.model(request.chat.model).id;
  ChatAnswer::start(service, request.chat, make_message(reply, model, request.stream));
}

void answer_count(Service& service, const Json& body, const HttpHead& /*head*/,
                  const std::shared_ptr<Reply>& reply) {
  const ChatRequest request = read_count_request(body);
  const ordered_json answer = {{"input_tokens", service.count_tokens(request)}};
  reply->send(json_response(answer));
}

}  // namespace

void add_anthropic_routes(Router& router, Models& models) {
  add_model_route(router, models, "/v1/messages", answer_messages, anthropic_error);
  add_model_route(router, models, "/v1/messages/count_tokens", answer_count, anthropic_error);
}

}  // namespace mixtral::serve
